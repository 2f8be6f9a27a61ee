"""Which rank is slower than its neighbours: each one's own time of a step, told in the step's own collective."""

import statistics
import time
from collections.abc import Sequence

import torch

from megatron_dpop.runtime.devices import on_gpu

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
    return {"perf/straggler": seconds[slowest] / statistics.median_low(seconds), "perf/slowest_rank": slowest}


class Stragglers:
    """Names a rank once it has been much slower than the others for several steps in a row."""

    def __init__(self) -> None:
        self._rank, self._steps = -1, 0

    def observe(self, values: dict[str, float]) -> str | None:
        rank, ratio = values.get("perf/slowest_rank", -1), values.get("perf/straggler", 0.0)
        self._steps = self._steps + 1 if ratio >= SLOW and rank == self._rank else int(ratio >= SLOW)
        self._rank = int(rank)
        if self._steps != STEPS_TO_BE_NAMED:
            return None
        return f"rank {rank} has taken {ratio:.1f} times as long as the others for {self._steps} steps"
