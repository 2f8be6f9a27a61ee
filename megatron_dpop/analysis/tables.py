"""Results as tables: in the terminal and on the page."""

from rich.table import Table as TerminalTable

from megatron_dpop.analysis.analyze import Analysis
from megatron_dpop.analysis.spans import SIDES, SPANS
from megatron_dpop.report.sections import Table, TableRow
from megatron_dpop.report.text import MINUS, MISSING, number

CAPTION = "Nats a token, over all pairs' tokens before, at and after the first one in which the two completions differ."


def nats(value: float | None, *, signed: bool = False) -> str:
    """Hundredths: one standard error of a few hundred tokens' mean is more."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}.2f}".replace("-", MINUS)


def means(analysis: Analysis) -> Table:
    """Mean log-probability a token, by model, side and span."""
    columns = [f"{side}, {span}" for side in SIDES for span in SPANS]
    rows = [
        TableRow(
            model.name,
            [nats(model.sides[side].spans[span].value) for side in SIDES for span in SPANS],
            run=index,
        )
        for index, model in enumerate(analysis.models)
    ]
    counts = analysis.models[0].sides["chosen"].spans
    tokens = ", ".join(f"{counts[span].count} {span}" for span in SPANS)
    return Table(columns, rows, corner="model", caption=f"{CAPTION} Preferred tokens: {tokens}.")


def differences(analysis: Analysis) -> Table | None:
    """The same less the reference's, and how many chosen completions fell; None without a reference."""
    if not analysis.has_reference or len(analysis.models) < 2:
        return None
    columns = [*(f"{side}, {span}" for side in SIDES for span in SPANS), "pairs whose chosen answer fell"]
    rows = []
    for index, model in enumerate(analysis.models[1:], start=1):
        cells = [nats(analysis.minus_reference(model, side, span), signed=True) for side in SIDES for span in SPANS]
        fell = number(model.fell.value if model.fell else None, style="percent")
        rows.append(TableRow(model.name, [*cells, fell], run=index))
    caption = "A chosen completion fell where its mean after the first differing token is below the reference's."
    return Table(columns, rows, corner="minus reference", caption=caption)


def displacements(analysis: Analysis) -> Table | None:
    """Rank correlation of pairs' CHES with what became of their chosen answers; None where nothing was compared."""
    if analysis.ches is None:
        return None
    rows = []
    for index, model in enumerate(analysis.models[1:], start=1):
        found = analysis.ches_correlation(model) or {}
        rows.append(TableRow(model.name, [nats(value, signed=True) for value in found.values()], run=index))
    caption = (
        "Rank correlation (Spearman's) of a pair's score, by the reference's hidden states, with its chosen answer's "
        "log-probability minus the reference's. Below zero: pairs with high scores lost more."
    )
    return Table(["CHES", "CHES a token"], rows, corner="rank correlation", caption=caption)


def terminal_table(analysis: Analysis) -> TerminalTable:
    """A line for each model's chosen and rejected completions, narrow enough for 80 columns."""
    table = TerminalTable("model", "completions", title="mean log-probability a token, nats")
    for span in SPANS:
        table.add_column(span, justify="right")
    for index, model in enumerate(analysis.models):
        is_compared = analysis.has_reference and index > 0
        for side in SIDES:
            cells = [nats(model.sides[side].spans[span].value) for span in SPANS]
            if is_compared:
                gaps = [nats(analysis.minus_reference(model, side, span), signed=True) for span in SPANS]
                cells = [f"{cell} ({gap})" for cell, gap in zip(cells, gaps, strict=True)]
            table.add_row(model.name if side == SIDES[0] else "", side, *cells)
    if analysis.has_reference:
        table.caption = "in brackets: minus the reference's"
    for model in analysis.models[1:] if analysis.ches is not None else ():
        found = (analysis.ches_correlation(model) or {}).get("ches_per_token")
        line = f"{model.name}: rank correlation of CHES and the chosen answers' change {nats(found, signed=True)}"
        table.caption = f"{table.caption}\n{line}"
    return table
