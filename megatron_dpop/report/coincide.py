"""Which runs' curves lie on each other: a chart shows the last one drawn alone, and the page has to say so."""

from collections.abc import Mapping, Sequence

from megatron_dpop.report.run import ReportedRun

LINE_WIDTH = 0.004  # of a chart's height: a line of 2 pixels in the large one
_CLOCK = "perf/"  # metrics of the machine, which no two runs share


def same_values(runs: Sequence[ReportedRun]) -> list[str | None]:
    """Returns for each run the name of an earlier one with the same numbers, the clock's aside; None without one."""
    values = [_without_clock(run) for run in runs]
    return [
        next((runs[first].name for first in range(at) if values[first] == values[at]), None) for at in range(len(runs))
    ]


def _without_clock(run: ReportedRun) -> dict[int, dict[str, str]]:
    """Numbers as text, by which one that is no number equals another."""
    found = {
        step: {name: repr(value) for name, value in line.items() if not name.startswith(_CLOCK)}
        for step, line in run.metrics.items()
    }
    return {step: line for step, line in found.items() if line}


Line = tuple[str, dict[int, float | None]]  # a run's name, and what it logged


def overlaps(splits: Mapping[str, Sequence[Line]]) -> str:
    """A sentence on the lines of one chart that hide each other, or nothing. `splits`: train and validation."""
    values = [value for lines in splits.values() for _, points in lines for value in points.values()]
    finite = [value for value in values if value is not None]
    near = LINE_WIDTH * (max(finite) - min(finite)) if finite else 0.0
    groups = {split: _groups(lines, near) for split, lines in splits.items() if len(lines) > 1}
    found = list(groups.values())
    if not any(found):
        return ""
    if all(one == found[0] for one in found):
        return ". ".join(_said(names) for names in found[0])
    return ". ".join(f"In {split}, {_said(names)}" for split, those in groups.items() for names in those)


def _groups(lines: Sequence[Line], near: float) -> list[list[str]]:
    """Names of lines of two points or more that coincide with the first of them."""
    groups: list[list[Line]] = []
    for line in lines:
        home = next((group for group in groups if _coincide(group[0][1], line[1], near)), None)
        if home is None:
            groups.append([line])
        else:
            home.append(line)
    return [[name for name, _ in group] for group in groups if len(group) > 1]


def _coincide(left: dict[int, float | None], right: dict[int, float | None], near: float) -> bool:
    shared = left.keys() & right.keys()
    return len(shared) == min(len(left), len(right)) > 1 and all(_close(left[at], right[at], near) for at in shared)


def _close(left: float | None, right: float | None, near: float) -> bool:
    return left is right if left is None or right is None else abs(left - right) <= near


def _said(names: Sequence[str]) -> str:
    listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) < 6 else f"{len(names)} runs"
    return f"{listed} lie on each other"
