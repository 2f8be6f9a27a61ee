"""Watches a run line by line; what it has said is a function of the lines alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_dpop.config.schema import RuleName
from megatron_dpop.health.history import History
from megatron_dpop.health.rules import RULES


@dataclass(frozen=True)
class Alert:
    """The first line at which a rule held, and what it saw there."""

    step: int
    rule: RuleName
    title: str
    what: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.title} ({self.rule}): {self.what}"


@dataclass(frozen=True)
class Finding:
    """All lines at which a rule held: from the first to the last of them, and what it saw at the last."""

    rule: RuleName
    title: str
    first_step: int
    last_step: int
    what: str


class Monitor:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: the run's config, flat ("loss.name"); may lack any key."""
        self._history = History(settings)
        self._findings: dict[str, Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        """Returns findings in the order in which the rules first held."""
        return list(self._findings.values())

    def observe(self, step: int, line: Mapping[str, float]) -> list[Alert]:
        """Takes in the next line (without "step"); returns the rules that hold for the first time."""
        self._history.add(step, line)
        new = []
        for rule in RULES:
            what = rule.look(self._history)
            if what is None:
                continue
            known = self._findings.get(rule.name)
            if known is None:
                new.append(Alert(step, rule.name, rule.title, what))
                known = Finding(rule.name, rule.title, step, step, what)
            self._findings[rule.name] = replace(known, last_step=step, what=what)
        return new


def findings(settings: Mapping[str, Any], lines: Iterable[tuple[int, Mapping[str, float]]]) -> list[Finding]:
    """What all `lines` (step, values), ascending, show."""
    monitor = Monitor(settings)
    for step, line in lines:
        monitor.observe(step, line)
    return monitor.findings
