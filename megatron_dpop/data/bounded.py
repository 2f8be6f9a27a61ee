"""Limits for a chat template, which is a program that came with a tokenizer: seconds, and sizes of what it makes."""

import signal
import threading
from functools import lru_cache
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

SECONDS = 5.0  # of this process's own time for one conversation; a template takes less than a thousandth
LARGEST = 10_000_000  # characters or entries that one operation makes


class TooSlowError(Exception):
    """The time is over."""


class WithinSeconds:
    """Raises TooSlowError in what runs longer. Only a process's first thread can be stopped so; others run on.

    The signal's handler stays: to set and reset it took a twentieth of tokenising.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = SECONDS if seconds is None else seconds

    def __enter__(self) -> None:
        self._watched = threading.get_ident() == threading.main_thread().ident
        if self._watched:
            _install_handler()
            signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        if self._watched:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@lru_cache(maxsize=1)
def _install_handler() -> None:
    """Once a process; one that is forked inherits it."""
    signal.signal(signal.SIGVTALRM, _over)


def _over(*_: Any) -> None:
    raise TooSlowError(f"it takes more than {SECONDS:.0f} seconds")


def bound_operators() -> None:
    """
    Has templates' sandbox refuse operations whose result is too large before they are carried out: they are C, which
    no signal stops. To be called before a template is compiled: how operators are called is compiled in.
    """
    ImmutableSandboxedEnvironment.intercepted_binops = frozenset(("*", "**", "%"))
    ImmutableSandboxedEnvironment.call_binop = _call_bounded  # type: ignore[method-assign]


def _call_bounded(self: SandboxedEnvironment, context: Any, operator: str, left: Any, right: Any) -> Any:
    size = 0.0
    if operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, int) and hasattr(other, "__len__"):
                size = max(size, float(max(one, 0)) * len(other))
        if isinstance(left, int) and isinstance(right, int):
            size = (left.bit_length() + right.bit_length()) / 8
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        size = left.bit_length() * float(min(abs(right), 1 << 60)) / 8
    elif operator == "%" and isinstance(left, str):
        digits = [len(part) for part in "".join(sign if sign.isdigit() else " " for sign in left).split()]
        size = float(10 ** max(digits, default=0)) if max(digits, default=0) > 7 or "*" in left else 0.0
    if size > LARGEST:
        raise SecurityError(f"an operation {operator} whose result has more than {LARGEST} parts")
    return self.binop_table[operator](left, right)
