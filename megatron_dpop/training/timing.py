"""What a step took: its rates, and which rank is slower than its neighbours."""

import resource
import statistics
import time
from collections.abc import Sequence
from functools import lru_cache

import torch

from dpop_base.architectures import Architecture
from dpop_base.metric_names import (
    MFU,
    MODEL_TFLOPS,
    PAIRS_PER_SECOND,
    PEAK_MEMORY,
    SLOWEST_RANK,
    STEP_SECONDS,
    STRAGGLER,
    TOKENS_PER_SECOND,
)
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.plan.flops import training_flops
from megatron_dpop.plan.hardware import known_device
from megatron_dpop.runtime.devices import on_gpu


def speed_metrics(
    architecture: Architecture, lora: LoraConfig | None, source: RowSource, step: int, seconds: float, devices: int
) -> dict[str, float]:
    """Rates of a training step that took `seconds`; FLOPs count useful work (`megatron_dpop.plan.flops`).

    `perf/mfu` (model FLOPs over the devices' stated bf16 peak, with FP8 too) is absent where no peak is known.
    """
    examples = source.examples_of_step(step)
    tokens = int(source.shapes.row_tokens[examples].sum())
    flops = training_flops(
        architecture,
        lora,
        tokens=tokens,
        scores=int(source.shapes.scores[examples].sum()),
        attended=int(source.shapes.attended[examples].sum()),
    )
    per_device = flops / seconds / devices
    peak = device_peak_flops()
    return {
        STEP_SECONDS: seconds,
        PAIRS_PER_SECOND: len(examples) / seconds,
        TOKENS_PER_SECOND: tokens / seconds,
        MODEL_TFLOPS: per_device / 1e12,
        **({} if peak is None else {MFU: per_device / peak}),
        PEAK_MEMORY: peak_memory_bytes(),
    }


@lru_cache(maxsize=1)
def device_peak_flops() -> float | None:
    """bf16 FLOP/s that this process's GPU is stated to reach; None for GPUs that we know nothing of, and for CPUs."""
    found = known_device(torch.cuda.get_device_name()) if on_gpu() else None
    return None if found is None else found.bf16_flops


def peak_memory_bytes() -> int:
    """This process's largest allocation so far: the GPU's, or resident memory on the CPU."""
    if on_gpu():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SLOW = 1.5  # times the median
STEPS_TO_BE_NAMED = 5


class StepClock:
    """Seconds from a step's start until this rank has computed its share, before it meets all others.

    On a GPU they are the device's, of the step before: its events have been waited for by then, so that nothing waits
    for a clock.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._before: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def begin(self) -> None:
        self._started = time.perf_counter()
        if on_gpu():
            self._before = self._events
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()

    def seconds(self) -> float | None:
        """None outside a step; 0 where nothing is known yet."""
        if self._started is None:
            return None
        started, self._started = self._started, None
        if self._events is None:
            return time.perf_counter() - started
        self._events[1].record()
        return self._before[0].elapsed_time(self._before[1]) / 1e3 if self._before else 0.0


def straggler_metrics(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest rank, and its time over the median's (of an even number, the faster of the two in the middle)."""
    if len(seconds) < 2 or min(seconds) <= 0:
        return {}
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {STRAGGLER: seconds[slowest] / statistics.median_low(seconds), SLOWEST_RANK: slowest}


class Stragglers:
    """Names a rank once it has been much slower than the others for several steps in a row."""

    def __init__(self) -> None:
        self._rank, self._steps = -1, 0

    def observe(self, values: dict[str, float]) -> str | None:
        rank, ratio = values.get(SLOWEST_RANK, -1), values.get(STRAGGLER, 0.0)
        self._steps = self._steps + 1 if ratio >= SLOW and rank == self._rank else int(ratio >= SLOW)
        self._rank = int(rank)
        if self._steps != STEPS_TO_BE_NAMED:
            return None
        return f"rank {rank} has taken {ratio:.1f} times as long as the others for {self._steps} steps"
