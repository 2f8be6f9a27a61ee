"""One HTML page, complete in itself: the tables, curves by position, and heat maps of sample pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_dpop.analysis.analyze import Analysis, ModelResult
from megatron_dpop.analysis.line_chart import Line, line_chart
from megatron_dpop.analysis.spans import OFFSETS, SIDES
from megatron_dpop.analysis.tables import differences, displacements, means, nats
from megatron_dpop.data.templates import PLAIN
from megatron_dpop.data.tokenizer import TextTokenizer, load_tokenizer
from megatron_dpop.pages import REFERENCE_COLOUR, render_page, series_colours, write_page
from megatron_dpop.report.sections import Table, TableRow
from megatron_dpop.report.text import MINUS

HERE = Path(__file__).parent
FEWEST_COMPLETIONS = 3  # that a point of a curve is the mean of
MOST_DOTS = 1000  # of a model
SHOWN_CHARACTERS = 400  # of a prompt, until it is unfolded
FULL_COLOUR_GAP = 3.0  # nats from the reference at which a token has its full colour
FULL_COLOUR_LOGP = 8.0  # nats below certainty, for the reference itself


@dataclass(frozen=True)
class Cell:
    """A token of a heat map. `kind`: "plain" (below certainty), "up" or "down" (against the reference)."""

    text: str
    kind: str
    percent: int  # of the full colour
    note: str
    is_first_difference: bool


@dataclass(frozen=True)
class HeatLine:
    model: int  # its place among the models of the page
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Sample:
    prompt: str
    beginning: str  # of a prompt that is too long to stand there whole; else empty
    sides: Sequence[tuple[str, Sequence[HeatLine]]]  # heading, a line for each model


def write_analysis(analysis: Analysis, tokenizer: Path, output: Path, *, samples: int) -> None:
    """Raises UserError where `output` cannot be written."""
    words = load_tokenizer(tokenizer, PLAIN)
    shown = range(min(samples, len(analysis.pairs)))
    colours = _colours(analysis)
    html = render_page(
        HERE,
        colours=colours,
        models=[model.name for model in analysis.models],
        pairs=len(analysis.pairs),
        tables=[table for table in (differences(analysis), means(analysis)) if table is not None],
        charts=[_chart(analysis, side, colours) for side in SIDES],
        displacements=displacements(analysis),
        displacement_chart=_displacement_chart(analysis, colours),
        samples=[_sample(analysis, at, words) for at in shown],
        has_reference=analysis.has_reference,
        full_gap=f"{FULL_COLOUR_GAP:g}",
        full_logp=f"{FULL_COLOUR_LOGP:g}",
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    write_page(output, html)


def _colours(analysis: Analysis) -> list[str]:
    """Each model's: its loss's, as in the report; the reference is grey."""
    first = [REFERENCE_COLOUR] * analysis.has_reference
    return [*first, *series_colours([model.loss for model in analysis.models[len(first) :]])]


def _chart(analysis: Analysis, side: str, colours: Sequence[str]) -> dict[str, Any]:
    """Mean log-probability by position; less the reference's, where there is one. With the numbers as a table."""
    is_gap = analysis.has_reference and len(analysis.models) > 1
    base = analysis.models[0].sides[side].positions
    lines = []
    for at, model in enumerate(analysis.models):
        if is_gap and at == 0:
            continue
        points = [
            (float(offset), here.value - (there.value if is_gap and there.value is not None else 0.0))
            for offset, here, there in zip(OFFSETS, model.sides[side].positions, base, strict=True)
            if here.value is not None and here.count >= min(FEWEST_COMPLETIONS, len(analysis.pairs))
        ]
        lines.append(Line(model.name, colours[at], points))
    what = "Log-probability minus the reference's" if is_gap else "Log-probability"
    title = f"{what}, {side} completions"
    return {
        "title": title,
        "svg": line_chart(lines, label=f"{title}, by position", x_title="tokens from the first differing one"),
        "table": _values(lines),
        "colours": [line.colour for line in lines],
    }


def _values(lines: Sequence[Line]) -> Table:
    """A line for each model, a column for each position that any has."""
    by_offset = [dict(line.points) for line in lines]
    offsets = sorted({offset for points in by_offset for offset in points})
    rows = [
        TableRow(line.name, [nats(points.get(offset)) for offset in offsets], run=at)
        for at, (line, points) in enumerate(zip(lines, by_offset, strict=True))
    ]
    return Table([f"{offset:g}".replace("-", MINUS) for offset in offsets], rows, corner="position")


def _displacement_chart(analysis: Analysis, colours: Sequence[str]) -> dict[str, Any] | None:
    """What became of each pair's chosen answer, by its CHES; None where nothing was compared."""
    if analysis.ches is None:
        return None
    scores = analysis.ches.ches_per_token.tolist()[:MOST_DOTS]
    clouds = [
        Line(model.name, colours[at], list(zip(scores, analysis.chosen_change(model).tolist(), strict=False)))
        for at, model in enumerate(analysis.models)
        if at > 0
    ]
    title = "Chosen log-probability minus the reference's, a dot for each pair"
    if len(analysis.pairs) > MOST_DOTS:
        title += f" (the first {MOST_DOTS})"
    svg = line_chart(clouds, label=f"{title}, by its score", x_title="CHES a token, by the reference", has_dots=True)
    rows = [
        TableRow(f"pair {at + 1}", [nats(score), *(nats(cloud.points[at][1], signed=True) for cloud in clouds)])
        for at, score in enumerate(scores)
    ]
    table = Table(["CHES a token", *(cloud.name for cloud in clouds)], rows)
    return {"title": title, "svg": svg, "table": table}


def _sample(analysis: Analysis, at: int, tokenizer: TextTokenizer) -> Sample:
    pair = analysis.pairs[at]
    sides = []
    for side in SIDES:
        texts = token_texts(getattr(pair, side), tokenizer)
        base = getattr(analysis.models[0].logps[at], side) if analysis.has_reference else None
        lines = [
            HeatLine(
                index,
                heat(
                    texts,
                    getattr(model.logps[at], side),
                    None if _is_base(analysis, model) else base,
                    first_difference=pair.common,
                ),
            )
            for index, model in enumerate(analysis.models)
        ]
        sides.append((side, lines))
    prompt = tokenizer.decode(pair.prompt.tolist())
    return Sample(prompt, prompt[:SHOWN_CHARACTERS] if len(prompt) > 1.2 * SHOWN_CHARACTERS else "", sides)


def _is_base(analysis: Analysis, model: ModelResult) -> bool:
    return analysis.has_reference and model is analysis.models[0]


def token_texts(ids: NDArray[np.int32], tokenizer: TextTokenizer) -> list[str]:
    """What each token adds to the text: a space before a word belongs to it, which decoding it alone would lose."""
    whole = [tokenizer.decode(ids[:end].tolist()) for end in range(len(ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(whole)]


def heat(
    texts: Sequence[str],
    logps: NDArray[np.float32],
    reference: NDArray[np.float32] | None,
    *,
    first_difference: int,
) -> list[Cell]:
    """A token is the darker the less likely it is; with a reference, the stronger its colour the more it moved."""
    cells = []
    for at, text in enumerate(texts):
        value = float(logps[at])
        if reference is None:
            kind, share, note = "plain", -value / FULL_COLOUR_LOGP, nats(value)
        else:
            gap = value - float(reference[at])
            kind, share = ("up" if gap > 0 else "down"), abs(gap) / FULL_COLOUR_GAP
            note = f"{nats(value)}, reference {nats(float(reference[at]))}: {nats(gap, signed=True)}"
        percent = round(100 * min(1.0, share))
        cells.append(Cell(text or "\N{OPEN BOX}", kind, percent, f"{note} nats", at == first_difference))
    return cells
