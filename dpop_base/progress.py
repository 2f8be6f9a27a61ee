"""Progress of long work: a bar on a terminal, now and then a plain line in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock

from dpop_base.pace import Pace, duration

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_LINES_OF_BYTES = 15.0

Advance = Callable[[int], None]  # takes the number of units (or bytes) that were done since the last call


def track[Item](
    items: Iterable[Item], title: str, *, total: int | None = None, unit_size: int = 1, show: bool = True
) -> Iterator[Item]:
    """Yields the items; `total` in items, `unit_size` is how many units one stands for."""
    if not show:
        yield from items
        return
    total_units = None if total is None else total * unit_size
    lines = nullcontext(_UnitLines(title, total_units).advance)
    with _bar(title, total_units) if sys.stderr.isatty() else lines as advance:
        for item in items:
            yield item
            advance(unit_size)


@contextmanager
def byte_progress(title: str, total_bytes: int, *, done_bytes: int = 0, show: bool = True) -> Iterator[Advance]:
    """Yields a thread-safe function that is told of each stretch of bytes done."""
    if not show:
        yield lambda num_bytes: None
    elif sys.stderr.isatty():
        with _bar(title, total_bytes, done=done_bytes, in_bytes=True) as advance:
            yield advance
    else:
        lines = _ByteLines(title, total_bytes, done_bytes)
        yield lines.advance
        lines.finish()


@contextmanager
def _bar(title: str, total: int | None, *, done: int = 0, in_bytes: bool = False) -> Iterator[Advance]:
    # Imported where it is needed: importing rich takes longer than converting a small model.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    pace = Pace(total, done=done)

    class PaceColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_of_bytes(pace) if in_bytes else str(pace))

    counts = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), counts, PaceColumn())
    with Progress(*columns, console=Console(stderr=True), transient=not in_bytes, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done)
        lock = Lock()

        def advance(units: int) -> None:
            with lock:
                pace.reach(pace.done + units)
            progress.advance(task, units)

        yield advance


def _of_bytes(pace: Pace) -> str:
    """The rate in GB a second and the time left, as far as they are known."""
    rate, left = pace.rate, pace.seconds_left
    known = ("" if rate is None else f"{rate / 1e9:.2f} GB/s", "" if left is None else f"{duration(left)} left")
    return ", ".join(filter(None, known))


class _UnitLines:
    """Says now and then how many units are done, at what rate, and what time is left."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._pace = title, Pace(total)
        self._said = time.monotonic()

    def advance(self, units: int) -> None:
        pace = self._pace
        pace.reach(pace.done + units)
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = "" if pace.total is None else f" of {pace.total}"
            _say(f"{self._title}: {pace.done}{of}, {pace}")


class _ByteLines:
    """Says now and then how many bytes are done, at what rate, and what time is left; and at the end what it took."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._before, self._pace = title, total, done, Pace(total, done=done)
        self._began = self._said = time.monotonic()
        self._lock = Lock()

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._pace.reach(self._pace.done + num_bytes)
            if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES_OF_BYTES:
                self._said = time.monotonic()
                done = f"{self._pace.done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
                _say(f"{self._title}: {done}, {_of_bytes(self._pace)}")

    def finish(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._began)
        rate = (self._pace.done - self._before) / seconds / 1e9
        _say(f"{self._title}: {self._total / 1e9:.2f} GB done, {rate:.2f} GB/s, {seconds:.1f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
