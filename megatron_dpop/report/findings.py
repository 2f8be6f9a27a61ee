"""What a run came to, in two numbers and one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpop_base.metric_names import ACCURACY, CHOSEN_LOGP, CHOSEN_MINUS_REFERENCE, LOSS
from megatron_dpop.config.losses import LOSSES
from megatron_dpop.report.health import HealthNote, health_notes
from megatron_dpop.report.run import ReportedRun
from megatron_dpop.report.tables import result_prefix, result_steps
from megatron_dpop.report.text import number

_SAME = "all that it logged but the clock is the same to the last digit, and the curves lie on each other"
_ALWAYS_SHOWN = ("beta", "lambda")  # of the other settings what is not as usual
SAME_NATS = 0.005  # rounds to 0.00: neither likelier nor less likely


@dataclass(frozen=True)
class RunFinding:
    """One card at the top of the page."""

    name: str
    loss: str  # "dpop, lambda 50, beta 0.3"; empty where the config is missing
    progress: str
    chosen: str  # nats relative to the reference, with its sign; empty where the run has no reference
    accuracy: str  # empty where the loss has none
    sentence: str
    health: Sequence[HealthNote]
    notes: Sequence[str]


def finding(run: ReportedRun, *, same_as: str | None = None) -> RunFinding:
    """`same_as`: an earlier run with the same numbers."""
    values = _final_values(run)
    return RunFinding(
        name=run.name,
        loss=_loss(run),
        progress=_progress(run),
        chosen=number(values[CHOSEN_MINUS_REFERENCE], signed=True) if CHOSEN_MINUS_REFERENCE in values else "",
        accuracy=number(values[ACCURACY], style="percent") if ACCURACY in values else "",
        sentence=_sentence(run, values),
        health=health_notes(run),
        notes=run.notes if same_as is None else (f"Coincides with {same_as}: {_SAME}.", *run.notes),
    )


def _final_values(run: ReportedRun) -> dict[str, float]:
    """The last measured results, without their prefix."""
    steps = result_steps(run)
    prefix = result_prefix(run)
    values = run.metrics[steps[-1]] if steps else {}
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _loss(run: ReportedRun) -> str:
    if run.loss is None:
        return ""
    settings = {key.removeprefix("loss."): value for key, value in run.config.items() if key.startswith("loss.")}
    usual = _usual_settings(run.loss)
    shown = [
        f"{key} {value}"
        for key, value in settings.items()
        if key != "name" and (key in _ALWAYS_SHOWN or value != usual.get(key))
    ]
    return ", ".join([run.loss, *shown])


def _usual_settings(loss: str) -> dict[str, Any]:
    """Each key of a loss with its default; none of a loss that this version does not know."""
    fields = getattr(LOSSES.get(loss), "__pydantic_fields__", {})
    return {field.alias or name: field.default for name, field in fields.items()}


def _progress(run: ReportedRun) -> str:
    if run.is_unfinished:
        return f"step {run.steps_done} of {run.steps_planned}"
    return f"{run.steps_planned or run.steps_done} steps"


def _sentence(run: ReportedRun, values: dict[str, float]) -> str:
    if not result_steps(run):
        return "No results yet."
    where = "On validation" if result_prefix(run) else f"On the training pairs of step {result_steps(run)[-1]}"
    if run.is_unfinished and result_prefix(run):
        where = f"On validation after {result_steps(run)[-1]} of {run.steps_planned} steps"
    accuracy = values.get(ACCURACY)
    chosen = values.get(CHOSEN_MINUS_REFERENCE)
    won = "" if accuracy is None else f"accuracy is {number(accuracy, style='percent')}"
    if chosen is None:
        return _sentence_without_reference(run, values, where, won)
    size = number(abs(chosen))
    if not math.isfinite(chosen):
        said, link = "the chosen answers' log-probability is not a finite number", "and"
    elif abs(chosen) < SAME_NATS:
        said, link = "the chosen answers are as likely as under the reference", "and"
    elif chosen < 0:
        said, link = f"the chosen answers are {size} nats less likely than under the reference", "while"
    else:
        said, link = f"the chosen answers are {size} nats likelier than under the reference", "and"
    return f"{where}, {said}{f', {link} {won}' if won else ''}."


def _sentence_without_reference(run: ReportedRun, values: dict[str, float], where: str, won: str) -> str:
    prefix = result_prefix(run)
    first, last = run.first(prefix + CHOSEN_LOGP), values.get(CHOSEN_LOGP)
    parts = [won] if won else []
    if first is not None and last is not None:
        parts.append(f"the chosen answers' log-probability went from {number(first)} to {number(last)} nats")
    if not parts and LOSS in values:
        parts.append(f"the loss is {number(values[LOSS])}")
    return f"{where}, {' and '.join(parts)}." if parts else "No results yet."
