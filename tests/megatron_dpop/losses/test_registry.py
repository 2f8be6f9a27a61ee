"""Losses are built from the config by name; what makes no sense is refused by name."""

import pytest
import torch

from dpop_base.errors import UserError
from megatron_dpop.config.losses import LOSSES, PAIR_LOSSES
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.registry import REGISTRY, make_loss


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "dppo"}, "loss.name: 'dppo' is no loss; did you mean dpo?"),
        ({"name": None}, "loss.name: 'None' is no loss; give one of dpo, dpop"),
        ({"name": ["dpo"]}, "is no loss"),
        ({"name": "dpop", "lambda": -1}, "loss.lambda: -1 is not valid: input should be greater than or equal to 0"),
        ({"name": "dpop", "lambda": None}, "loss.lambda: None is not valid: input should be a valid number"),
        ({"name": "dpop", "beta": 0}, "loss.beta: 0 is not valid: input should be greater than 0"),
        ({"name": "dpo", "beta": -0.1}, "loss.beta: -0.1 is not valid: input should be greater than 0"),
        ({"name": "dpo", "beta": float("nan")}, "loss.beta: nan is not valid: input should be a finite number"),
        ({"name": "dpo", "beta": float("inf")}, "loss.beta: inf is not valid"),
        ({"name": "dpo", "beta": True}, "loss.beta: True is not valid: a number is needed"),
        ({"name": "dpo", "beta": "strong"}, "loss.beta: 'strong' is not valid: input should be a valid number"),
        ({"name": "dpo", "label_smoothing": 0.5}, "loss.label_smoothing: 0.5 is not valid: input should be less than"),
        (
            {"name": "dpo", "lambda": 50.0},
            "loss.lambda has no effect on loss 'dpo'; its keys are nll_weight, beta, label_smoothing, average",
        ),
        ({"name": "dpop", "lamda": 50.0}, "loss.lamda has no effect on loss 'dpop'; did you mean loss.lambda?"),
        ({"name": "dpop", "nmae": "dpo"}, "loss.nmae has no effect on loss 'dpop'; did you mean loss.name?"),
        ({"name": "dpop", "lambda_": 50.0}, "did you mean loss.lambda?"),
        ({"name": "dpop", "label_smoothing": 0.1}, "loss.label_smoothing has no effect on loss 'dpop'"),
        ({"name": "sft", "beta": 0.1}, "loss.beta has no effect on loss 'sft'; its keys are reduction"),
        ({"name": "ipo", "reduction": "average"}, "loss.reduction: 'average' is not valid: input should be 'sum' or"),
        (
            {"name": "ipo", "reduction": ["sum"]},
            "loss.reduction: ['sum'] is not valid: input should be 'sum' or 'mean'",
        ),
        ({"name": "kto", "desirable_weight": 0}, "loss.desirable_weight: 0 is not valid"),
        ({"name": "cpo", "nll_weight": -1}, "loss.nll_weight: -1 is not valid"),
        ({"name": "dpo", "nll_weight": -1}, "loss.nll_weight: -1 is not valid"),
        (
            {"name": "dpop", "average": "token"},
            "loss.average: 'token' is not valid: input should be 'none' or 'tokens'",
        ),
        (
            {"name": "dpo_shift", "lambda": 1.5},
            "loss.lambda: 1.5 is not valid: input should be less than or equal to 1",
        ),
        ({"name": "dpo_shift", "lambda_end": 0}, "loss.lambda_end: 0 is not valid: input should be greater than 0"),
        ({"name": "exo", "label_smoothing": 0}, "loss.label_smoothing: 0 is not valid: input should be greater than 0"),
        ({"name": "apo_zer"}, "loss.name: 'apo_zer' is no loss; did you mean apo_zero?"),
        ({"name": "sum"}, "loss.terms is missing; add it"),
        (
            {"name": "sum", "terms": [{"name": "dpo"}]},
            "loss.terms: [{'name': 'dpo'}] is not valid: tuple should have at",
        ),
        (
            {"name": "sum", "beta": 1, "terms": [{"name": "dpo"}, {"name": "ipo"}]},
            "loss.beta has no effect on loss 'sum'; its keys are terms",
        ),
        ({"name": "sum", "terms": [{"name": "dpo"}, {"name": "dpo"}]}, "dpo is named 2 times; give each loss once"),
        ({"name": "sum", "terms": [{"weight": 1}, {"name": "dpo"}]}, "loss.terms.0.name is missing; give one of dpo"),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "sft"}]},
            "loss.terms.1.name: 'sft' is no loss of pairs; for the likelihood of the chosen answer give nll_weight",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "kto"}]},
            "loss.terms.1.name: 'kto' is no loss of pairs; ",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipoo"}]},
            "loss.terms.1.name: 'ipoo' is no loss of pairs",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipo", "weight": 0}]},
            "loss.terms.1.weight: 0 is not valid: input should be greater than 0",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipo", "lambda": 1}]},
            "loss.terms.1.lambda has no effect on loss 'ipo'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(section, message):
    with pytest.raises(UserError) as caught:
        make_loss(section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_reach_the_loss():
    loss = make_loss({"name": "dpop", "beta": 0.25, "lambda": "5e0"})
    assert loss.name == "dpop"
    assert loss.options.beta == 0.25
    assert loss.options.lambda_ == 5.0


def test_defaults_of_dpop_are_the_papers():
    options = make_loss({"name": "dpop"}).options
    assert (options.beta, options.lambda_) == (0.3, 50.0)


def test_every_section_has_a_loss_and_every_loss_a_section():
    assert {*REGISTRY, "sum"} == LOSSES.keys()
    assert {name for name, loss in REGISTRY.items() if loss.kind == "pair"} == PAIR_LOSSES.keys()


def test_registry_says_what_each_loss_needs():
    needs = {
        name: (loss.kind, loss.needs_reference, loss.needs_kl)
        for name, loss in ((name, make_loss({"name": name})) for name in REGISTRY)
    }
    with_reference = (
        *("dpo", "dpop", "ipo", "hinge", "robust", "exo", "discopop", "apo_zero", "apo_down"),
        *("nca", "bco", "sppo_hard", "cal_dpo", "dpo_shift", "bpo"),
    )
    assert needs == {
        **dict.fromkeys(with_reference, ("pair", True, False)),
        **dict.fromkeys(("cpo", "simpo", "orpo"), ("pair", False, False)),
        "kto": ("single", True, True),
        "aft": ("group", False, False),
        "sft": ("sft", False, False),
    }


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("row", [2, 3])
def test_nan_reaches_its_example_and_no_other(name, row):
    """Whoever trains stops on NaN: no hinge, mask or maximum may hide one."""
    loss = make_loss({"name": name})
    per_example = 2 if loss.kind in ("pair", "group") else 1
    logps = torch.full((6,), -20.0)
    logps[row] = float("nan")
    batch = CompletionBatch(
        logps=logps,
        reference_logps=torch.full((6,), -21.0),
        lengths=torch.full((6,), 5),
        example=torch.arange(6) // per_example,
        preferred=torch.tensor([True, False] * 3),
        num_examples=6 // per_example,
    )
    losses = loss(batch, kl=torch.tensor(0.5)).losses if loss.needs_kl else loss(batch).losses
    assert losses.isnan().nonzero().flatten().tolist() == [row // per_example]
