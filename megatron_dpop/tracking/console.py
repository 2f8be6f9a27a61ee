"""What a run says: a progress bar on a terminal, plain lines in a log, nothing on ranks other than 0."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from dpop_base.pace import Pace, duration


class Console:
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self, *, silent: bool, quiet: bool = False) -> None:
        """`silent`: says nothing at all; `quiet`: only what goes wrong, and how it ended."""
        self.silent = silent
        self.quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None

    def say(self, line: str) -> None:
        if not self.quiet:
            self.insist(line)

    def insist(self, line: str) -> None:
        """Says what a quiet run says too."""
        if not self.silent:
            self._rich.print(line, markup=False)
            sys.stderr.flush()

    @contextmanager
    def progress(self, title: str, total: int, *, done: int = 0) -> Iterator["Bar"]:
        """A bar of `total` steps, or on a plain log a line each tenth of them."""
        if self.silent or self.quiet or not self._rich.is_terminal:
            yield Bar(self, title, total, done, None)
            return
        with BarAndNumbers(title, total, done, self._rich) as progress:
            yield Bar(self, title, total, done, progress)


class BarAndNumbers(Progress):
    """The bar, steps and time left on one line, and on the next the numbers: both fit 80 columns."""

    def __init__(self, title: str, total: int, done: int, console: RichConsole) -> None:
        self.note = ""
        steps = (MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        super().__init__(
            TextColumn("{task.description}"), BarColumn(bar_width=None), *steps, console=console, expand=True
        )
        self._task = self.add_task(title, total=total, completed=done, left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, no_wrap=True, overflow="ellipsis")

    def show(self, done: int, left: str, note: str) -> None:
        self.note = note
        self.update(self._task, completed=done, left=left)


class Bar:
    def __init__(self, console: Console, title: str, total: int, done: int, progress: BarAndNumbers | None) -> None:
        self._console, self._title, self._total, self._progress = console, title, total, progress
        self._pace = Pace(total, done=done)
        self._first = done

    def update(self, done: int, note: str = "", *, line: bool = False) -> None:
        """Moves the bar; on a plain log writes a line if asked to, or at every tenth of the way."""
        left = self._time_left(done)
        note = note or self._seconds_of_one()
        if self._progress is not None:
            self._progress.show(done, left, note)
        elif line or done == self._total or done % max(1, self._total // 10) == 0:
            self._console.say("  ".join(filter(None, (f"{self._title} {done}/{self._total}", note, left))))

    def _time_left(self, done: int) -> str:
        """Reckons by the mean step since this start's first, which is no measure of others; validation is in it."""
        self._pace.reach(done)
        if done == self._first + 1:
            self._pace.begin_anew()
        left = self._pace.seconds_left
        return "" if left is None else f"{duration(left)} left"

    def _seconds_of_one(self) -> str:
        rate = self._pace.rate
        return "" if rate is None else f"{1 / rate:.2f} s each"
