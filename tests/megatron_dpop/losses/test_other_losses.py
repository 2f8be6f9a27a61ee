"""SFT, KTO and AFT: losses on completions and groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.kto import kl_estimate
from megatron_dpop.losses.registry import make_loss
from tests.distributed import run_ranks
from tests.megatron_dpop.losses.batches import select_examples


def batch_of(logps, preferred, example=None, reference=None, lengths=None) -> CompletionBatch:
    count = len(logps)
    example = list(range(count)) if example is None else example
    return CompletionBatch(
        logps=torch.tensor(logps, dtype=torch.float64, requires_grad=True),
        reference_logps=None if reference is None else torch.tensor(reference, dtype=torch.float64),
        lengths=torch.tensor(lengths or [7] * count),
        example=torch.tensor(example),
        preferred=torch.tensor(preferred),
        num_examples=example[-1] + 1 if example else 0,
    )


def test_sft_is_the_negative_log_likelihood():
    batch = batch_of([-20.0, -6.0], [True, True], lengths=[10, 2])
    assert make_loss({"name": "sft"})(batch).losses.tolist() == [2.0, 3.0]
    output = make_loss({"name": "sft", "reduction": "sum"})(batch)
    assert output.losses.tolist() == [20.0, 6.0]
    assert output.metrics["sft/nll_per_token"].tolist() == [2.0, 3.0]
    assert output.metrics["logps/chosen"].tolist() == [-20.0, -6.0]


def test_kto_follows_the_paper():
    """w_y - v(x, y), with v the paper's value function around the reference point."""
    kl = torch.tensor(0.7, dtype=torch.float64)
    batch = batch_of([-20.0, -25.0, -9.0], [True, False, True], reference=[-21.0, -22.0, -6.0])
    loss = make_loss({"name": "kto", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5})
    output = loss(batch, kl=kl)

    def value(x):
        return 1 / (1 + math.exp(-0.3 * x))

    expected = [1.5 - 1.5 * value(1.0 - 0.7), 0.5 - 0.5 * value(0.7 + 3.0), 1.5 - 1.5 * value(-3.0 - 0.7)]
    assert output.losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert output.metrics["rewards/chosen"].tolist() == pytest.approx([0.3, -0.9])
    assert output.metrics["rewards/rejected"].tolist() == pytest.approx([-0.9])
    assert output.metrics["logps/rejected"].tolist() == [-25.0]
    assert output.metrics["kto/kl"].tolist() == pytest.approx([0.7] * 3)


def test_kto_has_no_gradient_through_kl():
    kl = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    batch = batch_of([-20.0], [True], reference=[-21.0])
    make_loss({"name": "kto"})(batch, kl=kl).losses.sum().backward()
    assert kl.grad is None
    assert batch.logps.grad.any()


@pytest.mark.parametrize("ratio", [1e4, -1e4])
@pytest.mark.parametrize("preferred", [True, False])
def test_kto_stays_finite_at_extreme_ratios(ratio, preferred):
    batch = batch_of([ratio], [preferred], reference=[0.0])
    output = make_loss({"name": "kto"})(batch, kl=torch.tensor(0.0))
    output.losses.sum().backward()
    assert output.losses.isfinite().all()
    assert batch.logps.grad.isfinite().all()


def test_kl_must_be_given_exactly_where_it_is_used():
    batch = batch_of([-20.0], [True], reference=[-21.0])
    with pytest.raises(AssertionError, match="kl"):
        make_loss({"name": "kto"})(batch)
    with pytest.raises(AssertionError, match="kl"):
        make_loss({"name": "sft"})(batch, kl=torch.tensor(0.0))


def kl_on_a_rank(ratios: list[list[float]]) -> float:
    import torch.distributed as dist

    own = torch.tensor(ratios[dist.get_rank()])
    return kl_estimate(own, dist.group.WORLD).item()


@pytest.mark.slow
def test_kl_is_the_mean_over_all_ranks_completions():
    """Uneven counts, and one rank with none: still the mean over completions, not over ranks."""
    assert run_ranks(kl_on_a_rank, 2, [[1.0, 2.0, 6.0], []]) == [3.0, 3.0]
    assert run_ranks(kl_on_a_rank, 2, [[1.0, 3.0], [8.0]]) == [4.0, 4.0]


def test_kl_is_a_mean_and_never_negative():
    assert kl_estimate(torch.tensor([1.0, 2.0, 6.0]), None).item() == 3.0
    assert kl_estimate(torch.tensor([1.0, -4.0]), None).item() == 0.0
    assert kl_estimate(torch.tensor([]), None).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_kl_of_what_is_no_number_shows(bad):
    """The clamp at zero must not hide a log-probability of minus infinity."""
    assert not math.isfinite(kl_estimate(torch.tensor([1.0, bad]), None).item())


def naive_aft(batch: CompletionBatch) -> torch.Tensor:
    losses = []
    for group in range(batch.num_examples):
        mine = batch.example == group
        winners, losers = batch.logps[mine & batch.preferred], batch.logps[mine & ~batch.preferred]
        total = (losers[None, :] - winners[:, None]).exp().sum()
        losses.append(torch.log1p(total))
    return torch.stack(losses)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), groups=st.integers(1, 5))
def test_aft_is_the_double_sum(data, groups):
    """Any numbers of preferred and dispreferred completions, also none of one side."""
    example, preferred, logps = [], [], []
    for group in range(groups):
        labels = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
        example += [group] * len(labels)
        preferred += labels
        logps += data.draw(st.lists(st.floats(-60, -20), min_size=len(labels), max_size=len(labels)))
    batch = batch_of(logps, preferred, example)
    expected = naive_aft(batch)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), batch.logps)
    actual = make_loss({"name": "aft"})(batch).losses
    assert torch.allclose(actual, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(actual.sum(), batch.logps, allow_unused=True)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    parts = [make_loss({"name": "aft"})(select_examples(batch, group, group + 1)).losses for group in range(groups)]
    assert torch.allclose(torch.cat(parts), actual, rtol=1e-12, atol=0)


def test_aft_metrics_and_options():
    batch = batch_of(
        [-10.0, -12.0, -30.0, -5.0, -9.0],
        [True, True, False, False, True],
        example=[0, 0, 0, 1, 1],
        lengths=[10, 4, 10, 5, 3],
    )
    metrics = make_loss({"name": "aft"})(batch).metrics
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0]
    assert metrics["rewards/margins"].tolist() == [19.0, -4.0]
    assert metrics["logps/chosen"].tolist() == [-10.0, -12.0, -9.0]

    averaged = make_loss({"name": "aft", "reduction": "mean"})(batch).losses
    expected = [math.log1p(math.exp(-3 + 1) + math.exp(-3 + 3)), math.log1p(math.exp(-1 + 3))]
    assert averaged.tolist() == pytest.approx(expected, rel=1e-12)

    detached = make_loss({"name": "aft", "constraint": "detached"})(batch).losses
    assert torch.equal(detached, make_loss({"name": "aft"})(batch).losses)
    detached.sum().backward()
    assert (batch.logps.grad[batch.preferred] < 0).all()
    assert not batch.logps.grad[~batch.preferred].any()


def test_aft_stays_finite_at_extreme_differences():
    for dtype in (torch.float32, torch.float64):
        for first in (1e4, -1e4):
            logps = torch.tensor([first, 0.0, -first, 3.0], dtype=dtype, requires_grad=True)
            batch = batch_of([0.0] * 4, [True, True, False, False], example=[0] * 4)
            output = make_loss({"name": "aft"})(CompletionBatch(**{**vars(batch), "logps": logps}))
            output.losses.sum().backward()
            assert output.losses.isfinite().all()
            assert logps.grad.isfinite().all()
