"""A run's folder as it is on the disk: finished, still being written, or from another version."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.metric_names import VALIDATION
from dpop_base.run_names import CONFIG, ENVIRONMENT, METRICS
from megatron_dpop.config.load import flatten
from megatron_dpop.config.plain_yaml import read_yaml


@dataclass(frozen=True)
class ReportedRun:
    """What a report reads of one run. Every mapping may be empty."""

    name: str
    path: Path
    config: dict[str, Any]  # flat: "loss.beta" -> 0.3
    environment: dict[str, Any]  # flat: "packages.torch" -> "2.13.0"
    metrics: dict[int, dict[str, float]]  # step -> name -> value, ascending; values may be NaN or infinite
    notes: tuple[str, ...]  # what was missing or unreadable, one sentence each

    def series(self, name: str) -> list[tuple[int, float]]:
        """The steps that have `name`, ascending, with its value."""
        return [(step, values[name]) for step, values in self.metrics.items() if name in values]

    def first(self, name: str) -> float | None:
        series = self.series(name)
        return series[0][1] if series else None

    def last(self, name: str) -> float | None:
        series = self.series(name)
        return series[-1][1] if series else None

    @property
    def loss(self) -> str | None:
        """The loss's name; None where the config does not tell."""
        name = self.config.get("loss.name")
        return name if isinstance(name, str) else None

    @property
    def names(self) -> list[str]:
        """Every metric's name, in the order of its first appearance."""
        return list(dict.fromkeys(name for values in self.metrics.values() for name in values))

    @property
    def steps_done(self) -> int:
        """Training steps that were logged: a step with only validation is one that was not taken."""
        trained = [step for step, values in self.metrics.items() if any(not n.startswith(VALIDATION) for n in values)]
        return max(trained) + 1 if trained else 0

    @property
    def steps_planned(self) -> int | None:
        steps = self.config.get("train.steps")
        return steps if isinstance(steps, int) else None

    @property
    def is_unfinished(self) -> bool:
        """False also where nothing tells: steps that `logging.every` leaves out count as taken."""
        if self.steps_planned is None:
            return False
        every = self.config.get("logging.every", 1)
        unlogged = every - 1 if isinstance(every, int) else 0
        return max(self.metrics) < self.steps_planned and self.steps_done + unlogged < self.steps_planned


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Reads each folder. Raises UserError for one that is no run or has no metrics yet."""
    return [read_run(path, name=name) for path, name in zip(paths, distinct_names(paths), strict=True)]


def read_run(path: Path, *, name: str) -> ReportedRun:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder (run.dir of its config)")
    notes: list[str] = []
    metrics = _read_metrics(path / METRICS, notes)
    config = _read_mapping(path / CONFIG, read_yaml, notes)
    environment = _read_mapping(path / ENVIRONMENT, json.loads, notes)
    return ReportedRun(name, path, config, environment, metrics, tuple(notes))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Each folder's last name, with as many of its parents as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for at, own in enumerate(parts):
        others = [other for index, other in enumerate(parts) if index != at and other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]).replace("//", "/"))
    return names


def _read_metrics(path: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a run (it has no metrics.jsonl); give a run's folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix the file or leave this run out") from None
    metrics: dict[int, dict[str, float]] = {}
    unreadable = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = _parse_line(line)
        if parsed is None:
            unreadable.append(number)
        else:
            step, values = parsed
            metrics.setdefault(step, {}).update(values)  # a step that was written again counts as its last writing
    if not any(metrics.values()):
        raise UserError(f"{path}: holds no complete step yet; wait for the run's first step or leave this run out")
    if unreadable and unreadable[-1] == len(lines):
        notes.append("The last line of metrics.jsonl is incomplete (the run may be writing it) and is left out.")
        unreadable.pop()
    if unreadable:
        shown = ", ".join(map(str, unreadable[:5])) + (", …" if len(unreadable) > 5 else "")
        notes.append(f"metrics.jsonl has {len(unreadable)} unreadable line(s), left out: {shown}.")
    return dict(sorted(metrics.items()))


def _parse_line(line: str) -> tuple[int, dict[str, float]] | None:
    """A step and its numbers; None where the line is no such thing."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return None
    values = {name: _number(value) for name, value in row.items() if name != "step"}
    return step, {name: value for name, value in values.items() if value is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _read_mapping(path: Path, parse: Any, notes: list[str]) -> dict[str, Any]:
    """A flat mapping; empty, with a note, where the file is missing or is none."""
    try:
        tree = parse(path.read_text(encoding="utf-8"))
        if isinstance(tree, dict):
            return flatten(tree)
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    notes.append(f"{path.name} is not readable.")
    return {}
