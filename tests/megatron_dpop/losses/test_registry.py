"""Losses are built from the config by name; what makes no sense is refused by name."""

import pytest
import torch

from dpop_base.errors import UserError
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.registry import REGISTRY, build_loss


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "loss.name is missing; give one of dpo, dpop"),
        ({"name": "dppo"}, "loss.name is 'dppo', which is no loss; did you mean"),
        ({"name": None}, "loss.name is None, which is no loss"),
        ({"name": ["dpo"]}, "which is no loss"),
        ({"name": "dpop", "lambda": -1}, "loss.lambda is -1; give a number >= 0"),
        ({"name": "dpop", "lambda": None}, "loss.lambda is None"),
        ({"name": "dpop", "beta": 0}, "loss.beta is 0; give a number > 0"),
        ({"name": "dpo", "beta": -0.1}, "loss.beta is -0.1; give a number > 0"),
        ({"name": "dpo", "beta": float("nan")}, "loss.beta is nan; give a number > 0"),
        ({"name": "dpo", "beta": float("inf")}, "loss.beta is inf"),
        ({"name": "dpo", "beta": True}, "loss.beta is True; give a number > 0"),
        ({"name": "dpo", "beta": "strong"}, "loss.beta is 'strong'; give a number > 0"),
        ({"name": "dpo", "label_smoothing": 0.5}, "loss.label_smoothing is 0.5; give a number >= 0 and < 0.5"),
        (
            {"name": "dpo", "lambda": 50.0},
            "loss.lambda has no effect on loss 'dpo'; its keys are nll_weight, beta, label_smoothing, average",
        ),
        ({"name": "dpop", "lamda": 50.0}, "loss.lamda has no effect on loss 'dpop'; did you mean loss.lambda?"),
        ({"name": "dpop", "lambda_": 50.0}, "did you mean loss.lambda?"),
        ({"name": "dpop", "label_smoothing": 0.1}, "loss.label_smoothing has no effect on loss 'dpop'"),
        ({"name": "sft", "beta": 0.1}, "loss.beta has no effect on loss 'sft'; its keys are reduction"),
        ({"name": "ipo", "reduction": "average"}, "loss.reduction is 'average'; give sum or mean"),
        ({"name": "ipo", "reduction": ["sum"]}, "loss.reduction is ['sum']; give sum or mean"),
        ({"name": "kto", "desirable_weight": 0}, "loss.desirable_weight is 0; give a number > 0"),
        ({"name": "cpo", "nll_weight": -1}, "loss.nll_weight is -1; give a number >= 0"),
        ({"name": "dpo", "nll_weight": -1}, "loss.nll_weight is -1; give a number >= 0"),
        ({"name": "dpop", "average": "token"}, "loss.average is 'token'; give none or tokens"),
        ({"name": "dpo_shift", "lambda": 1.5}, "loss.lambda is 1.5; give a number > 0 and <= 1"),
        ({"name": "dpo_shift", "lambda_end": 0}, "loss.lambda_end is 0; give a number > 0 and <= 1 or null"),
        ({"name": "exo", "label_smoothing": 0}, "loss.label_smoothing is 0; give a number > 0"),
        ({"name": "apo_zer"}, "loss.name is 'apo_zer', which is no loss; did you mean apo_zero?"),
        ({"name": "sum"}, "loss.terms is None; give a list such as"),
        ({"name": "sum", "terms": [{"name": "dpo"}]}, "loss.terms has 1 entries, and a sum needs two"),
        ({"name": "sum", "beta": 1}, "loss.beta has no effect on loss 'sum'"),
        ({"name": "sum", "terms": [{"name": "dpo"}, {"name": "dpo"}]}, "loss.terms names dpo 2 times"),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "sft"}]},
            "loss.terms[1].name is 'sft', which is no loss of",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "kto"}]},
            "loss.terms[1].name is 'kto', which is no loss of",
        ),
        ({"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipoo"}]}, "loss.terms[1].name is 'ipoo'"),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipo", "weight": 0}]},
            "loss.terms[1].weight is 0; give a",
        ),
        (
            {"name": "sum", "terms": [{"name": "dpo"}, {"name": "ipo", "lambda": 1}]},
            "loss.terms[1].lambda has no effect",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(section, message):
    with pytest.raises(UserError) as caught:
        build_loss(section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_reach_the_loss():
    loss = build_loss({"name": "dpop", "beta": 0.25, "lambda": "5e0"})
    assert loss.name == "dpop"
    assert loss.hyperparameters.beta == 0.25
    assert loss.hyperparameters.lambda_ == 5.0


def test_defaults_of_dpop_are_the_papers():
    hyperparameters = build_loss({"name": "dpop"}).hyperparameters
    assert (hyperparameters.beta, hyperparameters.lambda_) == (0.3, 50.0)


def test_registry_says_what_each_loss_needs():
    needs = {
        name: (loss.kind, loss.needs_reference, loss.needs_kl)
        for name, loss in ((name, build_loss({"name": name})) for name in REGISTRY)
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
    loss = build_loss({"name": name})
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
