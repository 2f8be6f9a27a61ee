"""What a run that has ended says of itself: before and after, what it keeps and where, and what to do next."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpop_base.metric_names import (
    ACCURACY,
    CHOSEN_LOGP,
    CHOSEN_MINUS_REFERENCE,
    LOSS,
    MARGIN,
    REJECTED_LOGP,
    VALIDATION,
)
from megatron_dpop.tracking.disk import kept
from megatron_dpop.tracking.run_folder import RunFolder

# Loss and accuracy say that it trained, log-probabilities what it did to the answers.
SHOWN = {
    LOSS: "loss",
    ACCURACY: "accuracy",
    MARGIN: "margin",
    CHOSEN_MINUS_REFERENCE: "chosen - reference (nats)",
    CHOSEN_LOGP: "chosen log-probability (nats)",
    REJECTED_LOGP: "rejected log-probability (nats)",
}


def validation_line(step: int, validated: Mapping[str, float]) -> str:
    """One validation, as it is measured."""
    values = [f"{SHOWN[name]} {validated[VALIDATION + name]:.4g}" for name in SHOWN if VALIDATION + name in validated]
    return f"validation after {step} steps: {', '.join(values)}"


def outcome(folder: RunFolder) -> list[str]:
    """The lines that end a run."""
    lines = [*_comparison(folder), *_health(folder), f"kept: {kept(folder.path)}", *_where(folder)]
    name = shlex.quote(str(folder.path))
    return [*lines, f"next: megatron-dpop report {name}", f"      megatron-dpop clean {name} --dry-run"]


def _comparison(folder: RunFolder) -> Iterator[str]:
    """The first validation beside the last; none where a run had no two."""
    measured = [line for line in _lines(folder.metrics) if VALIDATION + LOSS in line]
    if len(measured) < 2 or measured[0]["step"] == measured[-1]["step"]:
        return
    first, last = measured[0], measured[-1]
    head = f"held-out data, steps {first['step']} and {last['step']}"
    width = max(len(head), *map(len, SHOWN.values()))
    yield f"{head:{width}}  {'before':>10}  {'after':>10}  {'change':>10}"
    for name, label in SHOWN.items():
        key = VALIDATION + name
        if key in first and key in last:
            change = last[key] - first[key]
            yield f"{label:{width}}  {first[key]:10.4f}  {last[key]:10.4f}  {change:+10.4f}"


def _health(folder: RunFolder) -> Iterator[str]:
    found = [f"{line['title']} (step {line['step']})" for line in _lines(folder.health)]
    if found:
        yield f"health: {'; '.join(found)}"


def _where(folder: RunFolder) -> Iterator[str]:
    for path in (folder.hf, folder.adapter):
        if path.is_dir():
            kind = "the adapter, for PEFT" if path == folder.adapter else "the model, for transformers"
            yield f"{kind}: {path}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
