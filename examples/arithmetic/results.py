"""Lines of results, one for each finished trial: kept as they come in, read, averaged over seeds."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dpop.report.text import MINUS
from megatron_dpop.tracking.run_folder import append_line, write_lines

Line = dict[str, Any]
# Student's t at 97.5%, by degrees of freedom from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95% confidence interval (NaN of a single value)."""

    mean: float
    half: float
    count: int

    def text(self, digits: int = 2, *, signed: bool = False, percent: bool = False) -> str:
        scale = 100 if percent else 1
        form = f"{'+' if signed else ''}.{digits}f"
        mean = format(scale * self.mean, form)
        if float(mean) == 0:
            mean = mean.replace("-", "").replace("+", "")
        words = mean if math.isnan(self.half) else f"{mean} ± {scale * self.half:.{digits}f}"
        return words.replace("-", MINUS)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval of a few runs, by Student's t."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, count)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = _T[count - 2] if count - 2 < len(_T) else 1.96
    return Estimate(mean, quantile * deviation / math.sqrt(count), count)


class Results:
    """A file of lines by their `name`, of which the one counts that answered most problems, and the first of those.

    What another process adds meanwhile is read with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[Line]:
        if not self.path.exists():
            return []
        found: dict[str, Line] = {}
        for text in self.path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["name"] not in found or line["problems"] > found[line["name"]]["problems"]:
                found[line["name"]] = line
        return list(found.values())

    def by_name(self) -> dict[str, Line]:
        return {line["name"]: line for line in self.lines()}

    def lacks(self, name: str, problems: int) -> bool:
        line = self.by_name().get(name)
        return line is None or line["problems"] < problems

    def of_kind(self, kind: str) -> list[Line]:
        return sorted((line for line in self.lines() if line["kind"] == kind), key=lambda line: line.get("seed", 0))

    def add(self, line: Line) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, line)

    def keep(self, names: Iterable[str], target: Path) -> None:
        """Writes the lines of these names, in their order, to another file: what is committed."""
        known = self.by_name()
        write_lines(target, [known[name] for name in names if name in known])


def paired_over_problems(ours: Sequence[Line], theirs: Sequence[Line]) -> Estimate:
    """Accuracy of one kind of runs minus another's: seed by seed and problem by problem.

    The interval is the problems': each contributes the mean of its differences over seeds (normal, for hundreds).
    """
    by_seed = {line["seed"]: line["solved"] for line in theirs}
    both = [(line["solved"], by_seed[line["seed"]]) for line in ours if line["seed"] in by_seed]
    differences = [
        sum(int(mine[at]) - int(other[at]) for mine, other in both) / len(both)
        for at in range(min(len(text) for pair in both for text in pair))
    ]
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1)
    return Estimate(mean, 1.96 * math.sqrt(variance / count), count)


def over_seeds(ours: Sequence[Line], theirs: Sequence[Line], name: str) -> Estimate:
    """A measurement of one kind of runs minus another's, with the interval of the seeds."""
    by_seed = {line["seed"]: line[name] for line in theirs}
    return estimate([line[name] - by_seed[line["seed"]] for line in ours if line["seed"] in by_seed])
