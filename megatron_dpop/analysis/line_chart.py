"""A chart of lines or dots as SVG; its colours are the page's style sheet's, so that it is right in light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from megatron_dpop.report.text import MINUS

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 14, 62


@dataclass(frozen=True)
class Line:
    """Points (x, y) in ascending x, in a CSS colour."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], *, label: str, x_title: str, has_dots: bool = False) -> str:
    """`label` says in words what the chart shows, for who cannot see it. Zero lies on both axes.

    `has_dots`: the points by themselves, which no line joins.
    """
    ys = [y for line in lines for _, y in line.points]
    xs = [x for line in lines for x, _ in line.points]
    ticks_x, ticks_y = ticks(min(xs, default=0), max(xs, default=1)), ticks(min(ys, default=0), max(ys, default=1))
    left, right = min([0, *xs]), max([0, *xs])
    low, high = min(ticks_y), max(ticks_y)

    def across(x: float) -> float:
        return LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for y in ticks_y:
        kind = "zero" if y == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{_short(x)}</text>'
        for x in ticks_x
        if left <= x <= right
    ]
    parts.append(f'<path class="zero" d="M{across(0):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
    )
    for line in lines:
        places = [f"{across(x):.1f} {down(y):.1f}" for x, y in line.points]
        if places:
            kind, path = ("dots", "h0M".join([*places, ""])[:-1]) if has_dots else ("line", "L".join(places))
            title = f"<title>{escape(line.name)}</title>"
            parts.append(f'<path class="{kind}" style="--series: {line.colour}" d="M{path}">{title}</path>')
    return "".join([*parts, "</svg>"])


def _short(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def ticks(low: float, high: float) -> list[float]:
    """About six round numbers that span both ends, and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:  # a model beside itself
        high = 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    return [at * step for at in range(math.floor(low / step), math.ceil(high / step) + 1)]
