"""The pair losses against their formulas, at meaningful points and at extreme ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dpop.losses.registry import REGISTRY, make_loss
from tests.megatron_dpop.losses.batches import pair_batch, random_pairs, select_examples

PAIR_LOSSES = [name for name, definition in REGISTRY.items() if definition.kind == "pair"]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value > -500 else value


def log_odds(mean_logp: float) -> float:
    return mean_logp - math.log1p(-math.exp(mean_logp))


def expected_loss(name: str, w: float, l: float, rw: float, rl: float, lw: int, ll: int) -> float:  # noqa: E741
    """The published formulas in plain Python, beta 0.3, other hyperparameters as they stand."""
    beta = 0.3
    chosen, rejected = w - rw, l - rl
    z = beta * (chosen - rejected)
    formulas = {
        "dpo": lambda: -log_sigmoid(z),
        "dpop": lambda: -log_sigmoid(beta * (chosen - rejected - 50.0 * max(0.0, -chosen))),
        "ipo": lambda: (chosen - rejected - 1 / (2 * beta)) ** 2,
        "hinge": lambda: max(0.0, 1 - z),
        "robust": lambda: (-0.9 * log_sigmoid(z) + 0.1 * log_sigmoid(-z)) / 0.8,
        "exo": lambda: (
            sigmoid(z) * (log_sigmoid(z) - math.log(0.999)) + sigmoid(-z) * (log_sigmoid(-z) - math.log(0.001))
        ),
        "discopop": lambda: -log_sigmoid(z) * (1 - sigmoid(z / 0.05)) + math.exp(-z) * sigmoid(z / 0.05),
        "apo_zero": lambda: 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected),
        "apo_down": lambda: sigmoid(beta * chosen) + 1 - sigmoid(z),
        "nca": lambda: (
            -log_sigmoid(beta * chosen) - 0.5 * log_sigmoid(-beta * chosen) - 0.5 * log_sigmoid(-beta * rejected)
        ),
        "bco": lambda: -log_sigmoid(beta * chosen) - log_sigmoid(-beta * rejected),
        "sppo_hard": lambda: (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2,
        "cal_dpo": lambda: (
            -log_sigmoid(chosen - rejected) + (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
        ),
        "dpo_shift": lambda: -log_sigmoid(beta * chosen - 0.75 * beta * rejected),
        "bpo": lambda: -log_sigmoid(min(beta * chosen, -beta * rejected)),
        "cpo": lambda: -log_sigmoid(beta * (w - l)) - w,
        "simpo": lambda: -log_sigmoid(beta * (w / lw - l / ll) - 1.0),
        "orpo": lambda: -w / lw - beta * log_sigmoid(log_odds(w / lw) - log_odds(l / ll)),
    }
    return formulas[name]()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_match_their_formulas(name):
    batch = random_pairs(40, seed=1)
    output = make_loss({"name": name, "beta": 0.3})(batch)
    for pair in range(40):
        rows = range(2 * pair, 2 * pair + 2)
        w, l = sorted(rows, key=lambda row: not batch.preferred[row])  # noqa: E741
        numbers = [batch.logps[w], batch.logps[l], batch.reference_logps[w], batch.reference_logps[l]]
        lengths = int(batch.lengths[w]), int(batch.lengths[l])
        expected = expected_loss(name, *(number.item() for number in numbers), *lengths)
        assert output.losses[pair].item() == pytest.approx(expected, rel=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), pairs=st.integers(1, 5), name=st.sampled_from(PAIR_LOSSES))
def test_gradients_match_finite_differences(seed, pairs, name):
    batch = random_pairs(pairs, seed=seed)
    loss = make_loss({"name": name, "beta": 0.3})
    (gradient,) = torch.autograd.grad(loss(batch).losses.sum(), batch.logps)
    step = 1e-6
    for row in range(2 * pairs):
        ends = []
        for sign in (1, -1):
            moved = batch.logps.detach().clone()
            moved[row] += sign * step
            ends.append(loss(type(batch)(**{**vars(batch), "logps": moved})).losses.sum())
        difference = ((ends[0] - ends[1]) / (2 * step)).item()
        assert gradient[row].item() == pytest.approx(difference, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "dpop"])
def test_loss_is_ln_2_where_policy_is_the_reference(name):
    batch = pair_batch([-30.0, -80.0], [-31.0, -70.0], [-30.0, -80.0], [-31.0, -70.0])
    output = make_loss({"name": name})(batch)
    assert output.losses.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert output.metrics["rewards/accuracies"].tolist() == [0.0, 0.0]


def test_dpop_is_dpo_where_the_chosen_ratio_is_at_least_one():
    batch = pair_batch([-30.0, -28.0], [-31.0, -20.0], [-30.0, -29.0], [-30.0, -22.0])
    dpo, dpop = make_loss({"name": "dpo", "beta": 0.3})(batch), make_loss({"name": "dpop"})(batch)
    assert torch.equal(dpop.losses, dpo.losses)
    assert not dpop.metrics["dpop/active_fraction"].any()
    gradients = [torch.autograd.grad(output.losses.sum(), batch.logps)[0] for output in (dpo, dpop)]
    assert torch.equal(*gradients)


def test_dpop_penalises_what_dpo_rewards():
    """Both completions lose 5 nats, the chosen one less: DPO's loss falls, DPOP's rises."""
    before = pair_batch([-30.0], [-30.0], [-30.0], [-30.0])
    after = pair_batch([-35.0], [-45.0], [-30.0], [-30.0])
    change = {}
    for name in ("dpo", "dpop"):
        loss = make_loss({"name": name, "beta": 0.3})
        change[name] = (loss(after).losses - loss(before).losses).item()
    assert change["dpo"] < -0.6
    assert change["dpop"] == pytest.approx(0.3 * (50 * 5 - 10) - math.log(2), rel=1e-6)
    metrics = make_loss({"name": "dpop"})(after).metrics
    assert metrics["dpop/penalty"].tolist() == [5.0]
    assert metrics["dpop/active_fraction"].tolist() == [1.0]
    assert metrics["logps/chosen_minus_reference"].tolist() == [-5.0]
    assert metrics["rewards/chosen"].tolist() == pytest.approx([-1.5])


def test_lambda_zero_is_dpo():
    batch = random_pairs(20, seed=2)
    dpo = make_loss({"name": "dpo", "beta": 0.3})(batch).losses
    assert torch.equal(make_loss({"name": "dpop", "beta": 0.3, "lambda": 0})(batch).losses, dpo)


def test_label_smoothing_mixes_both_directions():
    batch = random_pairs(20, seed=3)
    flipped = type(batch)(**{**vars(batch), "preferred": ~batch.preferred})
    plain = make_loss({"name": "dpo", "beta": 0.3})
    smooth = make_loss({"name": "dpo", "beta": 0.3, "label_smoothing": 0.1})
    expected = 0.9 * plain(batch).losses + 0.1 * plain(flipped).losses
    assert torch.allclose(smooth(batch).losses, expected, rtol=1e-12, atol=0)


def test_reduction_mean_is_the_sum_over_unit_lengths():
    batch = random_pairs(10, seed=4)
    per_token = type(batch)(
        **{
            **vars(batch),
            "logps": batch.logps / batch.lengths,
            "reference_logps": batch.reference_logps / batch.lengths,
        }
    )
    mean = make_loss({"name": "ipo", "reduction": "mean"})(batch).losses
    assert torch.allclose(mean, make_loss({"name": "ipo"})(per_token).losses, rtol=1e-12, atol=0)
    mean = make_loss({"name": "cpo", "nll_reduction": "mean", "nll_weight": 2.0})(batch)
    plain = make_loss({"name": "cpo", "nll_weight": 0.0})(batch)
    chosen_lengths = batch.lengths[batch.preferred]
    expected = plain.losses - 2 * batch.logps[batch.preferred] / chosen_lengths
    assert torch.allclose(mean.losses, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_extreme_log_ratios_stay_finite(name):
    far = 1e4
    values = [-far, 0.0, far]
    rows = [(w, l) for w in values for l in values]  # noqa: E741
    batch = pair_batch([w for w, _ in rows], [l for _, l in rows], [0.0] * 9, [0.0] * 9)  # noqa: E741
    output = make_loss({"name": name, "beta": 0.3})(batch)
    output.losses.sum().backward()
    assert output.losses.isfinite().all()
    assert batch.logps.grad.isfinite().all()
    assert batch.logps.grad.any()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_micro_batches_equal_one_batch(name):
    """Losses of a pair depend on that pair alone: any split gives the same bits."""
    batch = random_pairs(11, seed=5, dtype=torch.float32)
    loss = make_loss({"name": name})
    whole = loss(batch)
    parts = [loss(select_examples(batch, *edge)) for edge in ((0, 1), (1, 1), (1, 7), (7, 11))]
    assert torch.equal(torch.cat([part.losses for part in parts]), whole.losses)
    for metric, value in whole.metrics.items():
        assert torch.equal(torch.cat([part.metrics[metric] for part in parts]), value)
    (expected,) = torch.autograd.grad(whole.losses.sum(), batch.logps)
    (actual,) = torch.autograd.grad(sum(part.losses.sum() for part in parts), batch.logps)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_metrics_are_detached_and_one_per_pair(name):
    batch = random_pairs(6, seed=6)
    output = make_loss({"name": name})(batch)
    assert output.losses.shape == (6,)
    for value in output.metrics.values():
        assert value.shape == (6,)
        assert not value.requires_grad


def test_metrics_without_a_reference_leave_out_what_needs_one():
    batch = pair_batch([-30.0], [-31.0])
    metrics = make_loss({"name": "cpo", "beta": 0.5})(batch).metrics
    assert "logps/chosen_minus_reference" not in metrics
    assert metrics["rewards/chosen"].tolist() == [-15.0]
    assert metrics["rewards/margins"].tolist() == [0.5]


def test_nll_weight_adds_the_mean_over_the_chosen_answers_tokens():
    batch = random_pairs(10, seed=7)
    for name in ("dpo", "dpop", "simpo", "apo_zero"):
        plain, output = make_loss({"name": name})(batch), make_loss({"name": name, "nll_weight": 0.2})(batch)
        nll = -(batch.logps / batch.lengths)[batch.preferred]
        torch.testing.assert_close(output.losses, plain.losses + 0.2 * nll, rtol=1e-12, atol=0)
        assert torch.equal(output.metrics["nll_loss"], nll.detach())
        assert "nll_loss" not in plain.metrics


def test_average_tokens_is_the_sum_over_unit_lengths():
    batch = random_pairs(10, seed=8)
    per_token = type(batch)(
        **{
            **vars(batch),
            "logps": batch.logps / batch.lengths,
            "reference_logps": batch.reference_logps / batch.lengths,
        }
    )
    for name in ("dpo", "dpop"):
        averaged = make_loss({"name": name, "beta": 5.0, "average": "tokens"})(batch)
        expected = make_loss({"name": name, "beta": 5.0})(per_token).losses
        assert torch.allclose(averaged.losses, expected, rtol=1e-12, atol=0)
        summed = make_loss({"name": name, "beta": 5.0})(batch)
        assert torch.equal(averaged.metrics["rewards/margins"], summed.metrics["rewards/margins"])


def test_dpo_shift_moves_between_its_factors_with_the_runs_progress():
    batch = random_pairs(10, seed=9)
    moving = make_loss({"name": "dpo_shift", "beta": 0.3, "lambda": 0.5, "lambda_end": 1.0})
    for progress, factor in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        fixed = make_loss({"name": "dpo_shift", "beta": 0.3, "lambda": factor})
        assert torch.allclose(moving(batch, progress=progress).losses, fixed(batch).losses, rtol=1e-12, atol=0)
    assert torch.equal(moving(batch, progress=1.0).losses, make_loss({"name": "dpo", "beta": 0.3})(batch).losses)


def test_losses_against_displacement_push_the_chosen_answer_up_where_dpo_does_not():
    """With 5 nats lost by both answers DPO pushes the chosen one as at the start; these push it harder."""
    start, fallen = (
        pair_batch([chosen], [rejected], [-30.0], [-30.0]) for chosen, rejected in ((-30, -30), (-35, -35))
    )
    push = {}
    for name in ("dpo", "dpop", "cal_dpo", "bpo", "nca", "apo_zero"):
        push[name] = [
            -torch.autograd.grad(make_loss({"name": name, "beta": 0.1})(batch).losses.sum(), batch.logps)[0][0].item()
            for batch in (start, fallen)
        ]
    assert push["dpo"][1] == pytest.approx(push["dpo"][0])
    for name in ("dpop", "cal_dpo", "bpo", "nca"):
        assert push[name][1] > 1.2 * push[name][0] > 0, name
    assert push["apo_zero"][1] < push["apo_zero"][0]  # its sigmoid is flat on both sides: it does not pull back


def test_a_sum_weighs_its_terms_and_reports_each():
    batch = random_pairs(6, seed=10)
    terms = [{"name": "dpop", "weight": 0.7}, {"name": "simpo", "weight": 0.3, "nll_weight": 1.0}]
    loss = make_loss({"name": "sum", "terms": terms})
    output = loss(batch)
    dpop, simpo = (make_loss({key: value for key, value in term.items() if key != "weight"})(batch) for term in terms)
    torch.testing.assert_close(output.losses, 0.7 * dpop.losses + 0.3 * simpo.losses, rtol=1e-12, atol=0)
    assert torch.equal(output.metrics["loss/dpop"], dpop.losses.detach())
    assert torch.equal(output.metrics["rewards/margins"], dpop.metrics["rewards/margins"])
    assert {"loss/simpo", "dpop/penalty", "nll_loss"} <= output.metrics.keys()
    assert loss.needs_reference
