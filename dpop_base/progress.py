"""Progress of long work in bytes: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

LINE_EVERY_SECONDS = 15.0


class Report(Protocol):
    def __call__(self, num_bytes: int, /) -> None: ...


@contextmanager
def byte_progress(what: str, total_bytes: int, *, done_bytes: int = 0, show: bool = True) -> Iterator[Report]:
    """Yields a thread-safe function that is told of each stretch of bytes done."""
    if not show:
        yield lambda num_bytes: None
        return
    if sys.stderr.isatty():  # only then: importing rich takes longer than converting a small model
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=sys.stderr)) as bar:
            task = bar.add_task(what, total=total_bytes, completed=done_bytes)
            yield lambda num_bytes: bar.advance(task, num_bytes)
        return
    lines = _Lines(what, total_bytes, done_bytes)
    yield lines.advance
    lines.finish()


class _Lines:
    def __init__(self, what: str, total_bytes: int, done_bytes: int) -> None:
        self._what, self._total, self._done, self._new = what, total_bytes, done_bytes, 0
        self._began = self._said = time.monotonic()
        self._lock = Lock()

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._new += num_bytes
            if time.monotonic() - self._said >= LINE_EVERY_SECONDS:
                self._said = time.monotonic()
                rate = self._new / (self._said - self._began)
                left = (self._total - self._done) / rate
                self._say(
                    f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s, {left:.0f} s left"
                )

    def finish(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._began)
        self._say(f"{self._total / 1e9:.2f} GB done, {self._new / seconds / 1e9:.2f} GB/s, {seconds:.1f} s")

    def _say(self, text: str) -> None:
        print(f"{self._what}: {text}", file=sys.stderr, flush=True)
