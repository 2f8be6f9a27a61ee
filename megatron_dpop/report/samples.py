"""What runs answered to held-out prompts (`logging.samples`), at their first validation and their last."""

import json
from collections.abc import Sequence
from pathlib import Path

from dpop_base.run_names import SAMPLES
from megatron_dpop.report.run import ReportedRun
from megatron_dpop.report.sections import Section, Table, TableRow
from megatron_dpop.report.text import MISSING

_SHOWN_CHARACTERS = 1000


def sample_section(runs: Sequence[ReportedRun]) -> Section | None:
    """A table for each prompt, with a row for each run that answered it; None where no run did."""
    rows: dict[str, list[TableRow]] = {}
    for at, run in enumerate(runs):
        for prompt, by_step in _answers(run.path / SAMPLES).items():
            rows.setdefault(prompt, []).append(_row(run.name, by_step, at))
    columns = ["first validation", "last validation"]
    tables = [Table(columns, found, corner=_cut(prompt), is_text=True) for prompt, found in rows.items()]
    return Section("Sample answers", tables=tables) if tables else None


def _row(name: str, by_step: dict[int, str], run: int) -> TableRow:
    first, last = min(by_step), max(by_step)
    after = f"{_cut(by_step[last])} (step {last})" if last > first else MISSING
    return TableRow(name, [f"{_cut(by_step[first])} (step {first})", after], run=run)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _answers(path: Path) -> dict[str, dict[int, str]]:
    """Prompt -> step -> answer; what is no line of samples is passed over."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        values = [line.get(name) for name in ("prompt", "step", "answer")] if isinstance(line, dict) else []
        match values:
            case [str(prompt), int(step), str(answer)]:
                found.setdefault(prompt, {})[step] = answer
    return found
