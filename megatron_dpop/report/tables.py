"""The report's own tables: results, throughput, configs and environments side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpop_base.metric_names import (
    ACCURACY,
    CHOSEN_LOGP,
    CHOSEN_MINUS_REFERENCE,
    LOSS,
    MARGIN,
    MFU,
    MODEL_TFLOPS,
    PAIRS_PER_SECOND,
    PEAK_MEMORY,
    REJECTED_LOGP,
    STEP_SECONDS,
    TOKENS_PER_SECOND,
    VALIDATION,
)
from megatron_dpop.report.catalogue import describe
from megatron_dpop.report.run import ReportedRun
from megatron_dpop.report.sections import Table, TableRow
from megatron_dpop.report.text import MISSING, number, setting

RESULTS = (ACCURACY, MARGIN, CHOSEN_MINUS_REFERENCE, CHOSEN_LOGP, REJECTED_LOGP)
RATES = (
    STEP_SECONDS,
    PAIRS_PER_SECOND,
    TOKENS_PER_SECOND,
    MODEL_TFLOPS,
    MFU,
)


def results(runs: Sequence[ReportedRun]) -> Table | None:
    """Validation before and after; the step's own pairs for runs without validation. None where no run has either."""
    keys = [key for key in RESULTS if any(key in run.names or VALIDATION + key in run.names for run in runs)]
    if not keys:
        return None
    before = [_result_cells(run, keys, at=0) for run in runs]
    after = [_result_cells(run, keys, at=-1) for run in runs]
    starts = [
        TableRow(_row_label(runs, run, 0), cells, run=index)
        for index, (run, cells) in enumerate(zip(runs, before, strict=True))
    ]
    if len(runs) > 1 and all(cells == before[0] for cells in before) and all(_has_start(run) for run in runs):
        starts = [TableRow("before training", before[0])]
    ends = [
        TableRow(_row_label(runs, run, -1), cells, run=index)
        for index, (run, cells) in enumerate(zip(runs, after, strict=True))
        if len(result_steps(run)) > 1
    ]
    caption = ""
    if any(run.last(ACCURACY) is not None and run.first(result_prefix(run) + MARGIN) == 0 for run in runs):
        caption = (
            "Before training the model is its own reference: every margin is exactly 0, and no pair counts as won."
        )
    return Table([_heading(key) for key in keys], [*starts, *ends], caption=caption)


def result_prefix(run: ReportedRun) -> str:
    """Which values speak for a run: validation, unless all of it was before the training that there is."""
    validated = _steps_with(run, VALIDATION)
    if not validated:
        return ""
    trained = _steps_with(run, "")
    return "" if validated[-1] == 0 and len(trained) > 1 else VALIDATION


def result_steps(run: ReportedRun) -> list[int]:
    """The steps at which those values were measured."""
    return _steps_with(run, result_prefix(run))


def _steps_with(run: ReportedRun, prefix: str) -> list[int]:
    keys = {prefix + key for key in (*RESULTS, LOSS)}
    return [step for step, values in run.metrics.items() if keys & values.keys()]


def _has_start(run: ReportedRun) -> bool:
    return result_steps(run)[:1] == [0]


def _row_label(runs: Sequence[ReportedRun], run: ReportedRun, at: int) -> str:
    return f"{run.name}, {_when(run, at)}" if len(runs) > 1 else _when(run, at)


def _when(run: ReportedRun, at: int) -> str:
    steps = result_steps(run)
    if not steps:
        return "no results"
    if result_prefix(run) == "":
        return f"training step {steps[at]}"
    return "before training" if steps[at] == 0 else f"after {steps[at]} steps"


def _result_cells(run: ReportedRun, keys: Sequence[str], *, at: int) -> list[str]:
    steps = result_steps(run)
    values = run.metrics[steps[at]] if steps else {}
    prefix = result_prefix(run)
    return [
        number(values.get(prefix + key), style=describe(key).style, signed=key == CHOSEN_MINUS_REFERENCE)
        for key in keys
    ]


def _heading(key: str) -> str:
    metric = describe(key)
    name = metric.heading or metric.title
    return f"{name}, {metric.unit}" if metric.unit else name


def throughput(runs: Sequence[ReportedRun]) -> Table | None:
    """Medians over the steps after each run's first, which pays for starting up."""
    keys = [key for key in RATES if any(key in run.names for run in runs)]
    has_memory = any(PEAK_MEMORY in run.names for run in runs)
    if not keys and not has_memory:
        return None
    rows = []
    for index, run in enumerate(runs):
        cells = [number(_median(run, key), style=describe(key).style) for key in keys]
        if has_memory:
            peaks = [value for _, value in run.series(PEAK_MEMORY)]
            cells.append(number(max(peaks, default=None), style="bytes"))
        rows.append(TableRow(run.name, cells, run=index))
    columns = [_heading(key) for key in keys] + [_heading(PEAK_MEMORY)] * has_memory
    return Table(columns, rows, caption="Medians over the steps after the first, which pays for starting up.")


def _median(run: ReportedRun, key: str) -> float | None:
    values = [value for _, value in run.series(key)]
    return statistics.median(values[1:] or values) if values else None


def side_by_side(runs: Sequence[ReportedRun], values_of: Callable[[ReportedRun], Mapping[str, Any]]) -> Table:
    """Flat mappings in columns, one a run; a row is marked where the runs' values differ."""
    mappings = [values_of(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for mapping in mappings for key in mapping):
        cells = [setting(mapping[key]) if key in mapping else MISSING for mapping in mappings]
        rows.append(TableRow(key, cells, is_marked=len(set(cells)) > 1))
    return Table([run.name for run in runs], _by_section(rows), corner="key", is_text=True)


def differences(table: Table) -> Table:
    return Table(
        table.columns, [row for row in table.rows if row.is_marked], corner=table.corner, is_text=table.is_text
    )


def _by_section(rows: Sequence[TableRow]) -> list[TableRow]:
    """Keys that only a later run has come beside their section's others."""
    sections = list(dict.fromkeys(row.label.split(".")[0] for row in rows))
    return sorted(rows, key=lambda row: sections.index(row.label.split(".")[0]))
