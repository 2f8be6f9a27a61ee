"""Turns timed steps into rates: what a step did that was of use, and what sharing prefixes saved it from doing."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchmarks.session import Session, StepParts, TimedStep

FORMULA = (
    "model FLOPs = 3 x (2 x tokens x layers x weights of a layer + 4 x attended pairs x layers x heads x head_dim "
    "+ 2 x scores x hidden x vocabulary): forward once, backward twice, padding and recomputation not counted; "
    "MFU = model FLOPs / seconds / devices / peak FLOP/s"
)


@dataclass(frozen=True)
class StepWork:
    """Means a step, over all ranks."""

    pairs: float
    tokens: float
    scored_tokens: float
    model_flops: float
    unshared_flops: float  # what the same pairs would have cost without sharing
    unshared_tokens: float


def mean_work(session: Session, steps: Sequence[int]) -> StepWork:
    """What these steps trained on, from lengths alone."""
    from megatron_dpop.plan.flops import training_flops

    source = session.data.source
    examples = [index for step in steps for index in source.examples_of_step(step)]

    def flops(shapes: Any) -> float:
        return training_flops(
            session.engine.architecture,
            session.engine.lora,
            tokens=float(shapes.row_tokens[examples].sum()),
            scores=float(shapes.scores[examples].sum()),
            attended=float(shapes.attended[examples].sum()),
        )

    return StepWork(
        pairs=len(examples) / len(steps),
        tokens=float(source.shapes.row_tokens[examples].sum()) / len(steps),
        scored_tokens=float(source.shapes.scores[examples].sum()) / len(steps),
        model_flops=flops(source.shapes) / len(steps),
        unshared_flops=flops(source.unshared) / len(steps),
        unshared_tokens=float(source.unshared.row_tokens[examples].sum()) / len(steps),
    )


@dataclass(frozen=True)
class Rates:
    """Rates of counted steps; the time of a step is the median."""

    step_seconds: float
    spread_seconds: tuple[float, float]
    pairs_per_second: float
    tokens_per_second: float
    scored_tokens_per_second: float
    model_tflops_per_device: float
    mfu: float | None
    peak_flops: float | None
    saved_flops_fraction: float  # of what the same pairs cost without sharing
    saved_tokens_fraction: float
    pad_fraction: float
    parts: dict[str, float]  # share of a step's seconds, means
    peak_memory_bytes: int
    first_step_seconds: float


def rates(session: Session, timed: Sequence[TimedStep], *, devices: int, peak_flops: float | None) -> Rates:
    """The first of the timed steps warms up and is not counted."""
    counted = list(timed[1:])
    work = mean_work(session, [step.metrics["step"] for step in counted])
    seconds = statistics.median(step.seconds for step in counted)
    flops_per_second = work.model_flops / seconds / devices
    return Rates(
        step_seconds=seconds,
        spread_seconds=(min(step.seconds for step in counted), max(step.seconds for step in counted)),
        pairs_per_second=work.pairs / seconds,
        tokens_per_second=work.tokens / seconds,
        scored_tokens_per_second=work.scored_tokens / seconds,
        model_tflops_per_device=flops_per_second / 1e12,
        mfu=None if peak_flops is None else flops_per_second / peak_flops,
        peak_flops=peak_flops,
        saved_flops_fraction=1 - work.model_flops / work.unshared_flops,
        saved_tokens_fraction=1 - work.tokens / work.unshared_tokens,
        pad_fraction=statistics.mean(step.metrics["data/pad_fraction"] for step in counted),
        parts=_shares([step.parts for step in counted if step.parts is not None]),
        peak_memory_bytes=counted[-1].metrics["perf/peak_memory_bytes"],
        first_step_seconds=timed[0].seconds,
    )


def _shares(parts: Sequence[StepParts]) -> dict[str, float]:
    total = sum(part.total for part in parts)
    return (
        {field.name: sum(asdict(part)[field.name] for part in parts) / total for field in fields(StepParts)}
        if parts
        else {}
    )


def reachable_flops() -> float:
    """bf16 FLOP/s of one large product on this CPU: what stands in for a peak that no data sheet states."""
    import torch

    size = 2048
    left, right = (torch.randn(size, size).bfloat16() for _ in range(2))
    torch.mm(left, right)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)
