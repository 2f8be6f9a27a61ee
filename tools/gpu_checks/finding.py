"""One line of the check's table."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "MISS", "-"]


@dataclass(frozen=True)
class CheckResult:
    """What was found, what was expected, and what it usually means where they differ."""

    part: str
    what: str
    found: str
    expected: str
    verdict: Verdict  # "-": nothing is expected, on this device or at all
    means: str = ""

    def row(self) -> str:
        note = self.means if self.verdict == "MISS" else ""
        return f"| {self.part} | {self.what} | {self.found} | {self.expected} | {self.verdict} | {note} |"


HEADER = "| part | what | found | expected | | if it misses |\n| --- | --- | --- | --- | --- | --- |"


def within(
    part: str, what: str, value: float, low: float | None, high: float | None, *, unit: str, means: str
) -> CheckResult:
    """A number in a range; a bound that is None is none."""
    ok = (low is None or value >= low) and (high is None or value <= high)
    bounds = f"{low:.3g} to {high:.3g}" if low is not None and high is not None else ""
    bounds = bounds or (f"at least {low:.3g}" if low is not None else f"at most {high:.3g}" if high is not None else "")
    verdict: Verdict = "-" if low is None and high is None else "ok" if ok else "MISS"
    return CheckResult(part, what, f"{value:.3g} {unit}".strip(), bounds, verdict, means)


def attempted(part: str, what: str, work: Callable[[], Iterable[CheckResult]]) -> Iterator[CheckResult]:
    """The work's findings; an exception is one of them, and the check goes on."""
    try:
        yield from work()
    except Exception as error:
        text = (str(error).strip() or repr(error)).splitlines()[0][:160].replace("|", "/")
        yield CheckResult(
            part, what, f"{type(error).__name__}: {text}", "runs", "MISS", "a broken or unfitting installation"
        )
