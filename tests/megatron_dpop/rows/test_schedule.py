"""What a step trains on is arithmetic on (seed, step, lengths); how full and even its rows are."""

import time

import numpy as np
import pytest

from dpop_base.architectures import Architecture
from megatron_dpop.plan.flops import forward_flops
from megatron_dpop.rows.schedule import StepPlan, plan_rows, step_examples
from megatron_dpop.rows.shapes import ExampleShapes
from tests.megatron_dpop.rows.metamath_like import metamath_like

PAIRS = 50_000


def _architecture(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocabulary: int) -> Architecture:
    return Architecture("llama", layers, hidden, ffn, heads, kv_heads, hidden // heads, vocabulary, 4096, 1e-5, 1e4)


# Where attention, matrix products and the output layer have very different shares of the cost.
MODELS = {
    "smollm2-135m": _architecture(30, 576, 1536, 9, 3, 49152),
    "qwen2.5-0.5b": _architecture(24, 896, 4864, 14, 2, 151936),
    "llama-2-7b": _architecture(32, 4096, 11008, 32, 32, 32000),
    "qwen2.5-72b": _architecture(80, 8192, 29568, 64, 8, 152064),
}


def _flops(shapes: ExampleShapes, model: Architecture) -> np.ndarray:
    return forward_flops(model, tokens=shapes.row_tokens, scores=shapes.scores, attended=shapes.attended)


def _plan(
    shapes: ExampleShapes,
    step: int,
    *,
    batch: int,
    ranks: int,
    examples: int = PAIRS,
    row_tokens: int = 8192,
    multiple: int = 64,
    flops: np.ndarray | None = None,
) -> StepPlan:
    return plan_rows(
        step_examples(seed=3, step=step, batch=batch, examples=examples),
        shapes.row_tokens,
        _flops(shapes, MODELS["smollm2-135m"]) if flops is None else flops,
        capacity_tokens=row_tokens,
        multiple=multiple,
        data_parallel=ranks,
    )


def _fill(plan: StepPlan, shapes: ExampleShapes) -> float:
    used = sum(int(shapes.row_tokens[list(row)].sum()) for row in plan.rows)
    return used / (len(plan.rows) * plan.row_tokens)


def _spread(plan: StepPlan, flops: np.ndarray) -> float:
    """How much more the costliest rank computes than the cheapest, as a fraction."""
    cost = [sum(int(flops[list(row)].sum()) for row in rows) for rows in plan.by_rank]
    return max(cost) / min(cost) - 1


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("row_tokens", [4096, 8192])
@pytest.mark.parametrize("model", MODELS)
def test_rows_are_full_and_ranks_even(model: str, row_tokens: int, share: bool) -> None:
    """Down to eight pairs a rank: at least 97% full, and FLOPs within 3%; evening stops at 1%."""
    shapes = metamath_like(PAIRS, share_prefix=share)
    flops = _flops(shapes, MODELS[model])
    for batch in (64, 128, 256, 512):
        for ranks in (1, 2, 4, 8):
            for step in range(5):
                plan = _plan(shapes, step, batch=batch, ranks=ranks, row_tokens=row_tokens, flops=flops)
                assert _fill(plan, shapes) >= 0.97, (batch, ranks, step)
                assert _spread(plan, flops) < 0.03, (batch, ranks, step)


def test_longer_pairs() -> None:
    """Pairs of a thousand tokens, seven of them a row."""
    shapes = metamath_like(PAIRS, scale=3.0)
    flops = _flops(shapes, MODELS["llama-2-7b"])
    for step in range(10):
        plan = _plan(shapes, step, batch=256, ranks=4, flops=flops)
        assert _fill(plan, shapes) >= 0.97
        assert _spread(plan, flops) < 0.03


@pytest.mark.slow
def test_an_epoch_of_400_000_pairs_is_planned_in_seconds() -> None:
    shapes = metamath_like(400_000)
    flops = _flops(shapes, MODELS["llama-2-7b"])
    seen = np.zeros(400_000, dtype=np.int64)
    started = time.process_time()
    for step in range(400_000 // 512):
        for row in _plan(shapes, step, batch=512, ranks=4, examples=400_000, flops=flops).rows:
            seen[list(row)] += 1
    assert time.process_time() - started < 20
    assert seen.max() == 1
    assert seen.sum() == 400_000 // 512 * 512


def test_planning_is_quick() -> None:
    shapes = metamath_like(400_000)
    flops = _flops(shapes, MODELS["llama-2-7b"])
    started = time.process_time()
    for step in range(80):
        _plan(shapes, step, batch=512, ranks=4, examples=400_000, flops=flops)
    assert (time.process_time() - started) * 400_000 / (80 * 512) < 20  # seconds for an epoch


def test_ranks_hold_exactly_the_steps_pairs() -> None:
    shapes = metamath_like(PAIRS)
    for batch, ranks in ((512, 4), (7, 2), (3, 4), (1, 8)):
        plan = _plan(shapes, 5, batch=batch, ranks=ranks)
        assert len(plan.by_rank) == ranks
        assert len({len(rows) for rows in plan.by_rank}) == 1
        held = [index for row in plan.rows for index in row]
        assert sorted(held) == sorted(step_examples(seed=3, step=5, batch=batch, examples=PAIRS))
        assert max(int(shapes.row_tokens[list(row)].sum()) for row in plan.rows) <= plan.row_tokens <= 8192


def test_rows_of_one_length_whatever_they_hold() -> None:
    """As overlapped communication asks: the multiple is the capacity."""
    shapes = metamath_like(PAIRS)
    for batch, ranks in ((512, 4), (7, 2), (1, 8)):
        plan = _plan(shapes, 5, batch=batch, ranks=ranks, multiple=8192)
        assert plan.row_tokens == 8192
        held = sorted(index for row in plan.rows for index in row)
        assert held == sorted(step_examples(seed=3, step=5, batch=batch, examples=PAIRS))


def test_the_order_of_pairs_does_not_depend_on_ranks_or_layout() -> None:
    """Ranks, rows and the model decide in which row a pair stands, never in which step."""
    shared, unshared = metamath_like(PAIRS), metamath_like(PAIRS, share_prefix=False)
    for step in (0, 3, 200):
        chosen = step_examples(seed=3, step=step, batch=96, examples=PAIRS)
        for shapes, model, capacity, multiple, ranks, rows_multiple in (
            (shared, "smollm2-135m", 8192, 64, 1, 1),
            (shared, "smollm2-135m", 8192, 64, 3, 1),
            (shared, "smollm2-135m", 4096, 64, 8, 1),
            (shared, "qwen2.5-72b", 8192, 1024, 2, 4),  # tensor and context parallel, an interleaved pipeline
            (unshared, "qwen2.5-72b", 8192, 64, 2, 1),
        ):
            plan = plan_rows(
                chosen,
                shapes.row_tokens,
                _flops(shapes, MODELS[model]),
                capacity_tokens=capacity,
                multiple=multiple,
                data_parallel=ranks,
                rows_multiple=rows_multiple,
            )
            assert sorted(index for row in plan.rows for index in row) == sorted(chosen)
            assert len(plan.by_rank[0]) % rows_multiple == 0


def test_a_plan_depends_on_nothing_but_its_arguments() -> None:
    """A run that resumes at a step plans it as a run that came there: no state is carried from step to step."""
    shapes = metamath_like(PAIRS)
    came_there = [_plan(shapes, step, batch=64, ranks=2) for step in range(6)]
    for step in (5, 2, 4):
        assert _plan(shapes, step, batch=64, ranks=2) == came_there[step]


def test_epochs_are_fresh_permutations_and_steps_span_them() -> None:
    steps = [step_examples(seed=1, step=step, batch=4, examples=10) for step in range(5)]
    order = [index for step in steps for index in step]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert (
        order[:10]
        != [index for step in range(3) for index in step_examples(seed=2, step=step, batch=4, examples=10)][:10]
    )
    # A batch larger than the data takes some examples twice.
    assert np.bincount(step_examples(seed=1, step=0, batch=25, examples=10)).tolist().count(2) == 5


def test_the_order_is_fixed_for_good() -> None:
    """Runs that were started by an earlier version must go on with the same pairs."""
    assert step_examples(seed=0, step=1, batch=6, examples=9) == [7, 0, 1, 1, 3, 6]
