"""Series of points for the charts: gaps where a value is no number, running means, and not more than can be seen."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dpop_base.metric_names import VALIDATION
from megatron_dpop.report.catalogue import Metric
from megatron_dpop.report.coincide import Line, overlaps
from megatron_dpop.report.run import ReportedRun

MOST_POINTS = 800  # of one line: about one a pixel of the widest chart
MOST_MEANS = 300  # of a running mean, which bends slowly
SMOOTHED_FROM = 100  # points; shorter lines are read as they are
LOG_RATIO = 50.0  # of largest to smallest value


class CurvePoint(NamedTuple):
    step: int
    value: float | None  # None: measured, and not a finite number


Points = list[CurvePoint]


def chart(metric: Metric, runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """What the page's script draws: see charts.js."""
    series = []
    lines: dict[str, list[Line]] = {"train": [], "validation": []}
    for index, run in enumerate(runs):
        for split, prefix in (("train", ""), ("validation", VALIDATION)):
            points = [CurvePoint(step, finite(value)) for step, value in run.series(prefix + metric.key)]
            if points:
                series.append(_series(index, split, points))
                lines[split].append((run.name, dict(points)))
    values = [p.value for one in series for p in one["points"] if p.value is not None]
    return {
        "id": "chart-" + "".join(c if c.isalnum() else "-" for c in metric.key),
        "title": metric.title,
        "note": metric.note,
        "overlaps": overlaps(lines),
        "unit": metric.unit,
        "style": metric.style,
        "zero": metric.zero,
        "log": metric.may_be_log and spans_magnitudes(values),
        "series": series,
    }


def finite(value: float) -> float | None:
    """Six significant digits: more than a chart or its tooltip shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def spans_magnitudes(values: Sequence[float]) -> bool:
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _series(index: int, split: str, points: Points) -> dict[str, Any]:
    series: dict[str, Any] = {"run": index, "split": split, "points": thin(points, MOST_POINTS)}
    if split == "train" and len(points) >= SMOOTHED_FROM:
        window = max(5, len(points) // 25)
        series |= {"smooth": thin(running_mean(points, window), MOST_MEANS), "window": window}
    return series


def running_mean(points: Points, window: int) -> Points:
    """Mean of the last `window` points (fewer at the start); a value that is no number is left out of it."""
    means: Points = []
    recent: list[float | None] = []
    total, count = 0.0, 0
    for step, value in points:
        recent.append(value)
        if value is not None:
            total, count = total + value, count + 1
        if len(recent) > window:
            left = recent[-window - 1]
            if left is not None:
                total, count = total - left, count - 1
        means.append(CurvePoint(step, finite(total / count) if count else None))
    return means


def thin(points: Points, most: int) -> Points:
    """Keeps at most `most` of the points: each stretch keeps its lowest and its highest, so spikes stay."""
    if len(points) <= most:
        return points
    stretches = max(1, (most - 2) // 2)
    inner = points[1:-1]
    kept = {points[0], points[-1]}
    for at in range(stretches):
        stretch = inner[at * len(inner) // stretches : (at + 1) * len(inner) // stretches]
        measured = [point for point in stretch if point.value is not None] or stretch[:1]
        if measured:
            kept |= {min(measured, key=_height), max(measured, key=_height)}
    return sorted(kept, key=lambda point: point.step)


def _height(point: CurvePoint) -> float:
    return math.nan if point.value is None else point.value
