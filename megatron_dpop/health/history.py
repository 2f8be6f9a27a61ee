"""The lines of `metrics.jsonl` up to a step, by metric."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpop_base.metric_names import SOURCE


class LoggedValue(NamedTuple):
    step: int
    value: float


class History:
    """What has been logged so far. A value that is not finite counts as not logged, except in `line`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: the run's config, flat ("loss.name"); may lack any key."""
        self.settings = settings
        self.line: Mapping[str, float] = {}  # the newest
        self.step = -1  # of the newest line
        self._series: dict[str, list[LoggedValue]] = {}
        self._scopes = {"": None}  # an ordered set

    def add(self, step: int, line: Mapping[str, float]) -> None:
        """`line` must be of a later step than all before."""
        assert step > self.step, f"step {step} after step {self.step}"
        self.step, self.line = step, line
        for name, value in line.items():
            if name.startswith(SOURCE):
                self._scopes["/".join(name.split("/")[:2]) + "/"] = None
            if math.isfinite(value):
                self._series.setdefault(name, []).append(LoggedValue(step, value))

    def series(self, name: str) -> Sequence[LoggedValue]:
        return self._series.get(name, ())

    def newest(self, name: str, count: int) -> Sequence[LoggedValue]:
        """The last `count` points; none where there are fewer."""
        series = self.series(name)
        return series[-count:] if len(series) >= count else ()

    def up_to(self, name: str, step: int, count: int) -> Sequence[LoggedValue]:
        """The last `count` points (or fewer) at or before `step`."""
        return [point for point in self.series(name) if point.step <= step][-count:]

    def scopes(self) -> list[str]:
        """Prefixes of results: of all examples, then of each source where there are several."""
        return list(self._scopes)


def mean(points: Sequence[LoggedValue]) -> float:
    return statistics.fmean(point.value for point in points)


def median(points: Sequence[LoggedValue]) -> float:
    return statistics.median(point.value for point in points)
