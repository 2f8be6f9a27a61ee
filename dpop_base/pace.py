"""How fast work goes, and how long the rest of it takes."""

import time
from collections.abc import Callable


class Pace:
    """The mean since the start, or since `begin_anew`: what is done stands for what is left."""

    def __init__(self, total: float | None, *, done: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """`total`: None where nobody knows; `done`: before this start, which says nothing of the pace."""
        self.total, self.done = total, done
        self._clock = clock
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets how long what is done took: the first of many pays for starting up."""
        self._first = self.done
        self._began = self._now = self._clock()

    def reach(self, done: float) -> None:
        self.done, self._now = done, self._clock()

    @property
    def rate(self) -> float | None:
        """Units a second; None where none is done."""
        seconds = self._now - self._began
        return (self.done - self._first) / seconds if self.done > self._first and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds from now until all are done; None where that cannot be known, or nothing is left."""
        if self.total is None or self.rate is None or self.done >= self.total:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (self._clock() - self._now))

    def __str__(self) -> str:
        """The rate, in units a second or seconds a unit, and what is left: `12.5/s, 40 s left`."""
        if self.rate is None:
            return ""
        rate = f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s each"
        left = self.seconds_left
        return rate if left is None else f"{rate}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Writes a time in two units at most: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
