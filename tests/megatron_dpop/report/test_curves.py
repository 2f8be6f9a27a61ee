"""Points of the charts, against brute force."""

import math
import random

import pytest

from megatron_dpop.report.catalogue import arrange, describe
from megatron_dpop.report.curves import CurvePoint, finite, running_mean, spans_magnitudes, thin


def _noise(count: int, seed: int = 0) -> list[CurvePoint]:
    noise = random.Random(seed)
    return [CurvePoint(step, None if noise.random() < 0.1 else noise.gauss(0, 1)) for step in range(count)]


@pytest.mark.parametrize("count", [3, 50, 51, 999, 5000])
def test_thinning_keeps_ends_extremes_and_nothing_invented(count: int) -> None:
    points = _noise(count)
    kept = thin(points, 50)
    assert len(kept) <= 50 or count <= 50
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert [point.step for point in kept] == sorted({point.step for point in kept})
    values = [point.value for point in points if point.value is not None]
    kept_values = [point.value for point in kept if point.value is not None]
    assert (min(kept_values), max(kept_values)) == (min(values), max(values))


def test_thinning_a_line_without_any_number_leaves_gaps() -> None:
    points = [CurvePoint(step, None) for step in range(1000)]
    assert all(point.value is None for point in thin(points, 50))


@pytest.mark.parametrize("window", [1, 5, 40])
def test_running_mean_is_the_mean_of_the_last_window(window: int) -> None:
    points = _noise(200, seed=1)
    for at, (step, mean) in enumerate(running_mean(points, window)):
        recent = [p.value for p in points[max(0, at + 1 - window) : at + 1] if p.value is not None]
        assert step == points[at].step
        expected = sum(recent) / len(recent) if recent else None
        assert mean == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-6))


def test_what_is_no_number_becomes_a_gap() -> None:
    assert [finite(value) for value in (math.nan, math.inf, -math.inf, 1.23456789)] == [None, None, None, 1.23457]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 60.0], True), ([1.0, 40.0], False), ([0.0, 1e6], False), ([-1.0, 1e6], False), ([1.0], False), ([], False)],
)
def test_log_axis_needs_positive_values_that_span_magnitudes(values: list[float], expected: bool) -> None:
    assert spans_magnitudes(values) is expected


def test_order_of_charts() -> None:
    names = [
        "loss",
        "other/b",
        "learning_rate",
        "logps/chosen_minus_reference",
        "validation/other/a",
        "rewards/rejected",
    ]
    main, others = arrange(names)
    assert [m.key for m in main] == ["logps/chosen_minus_reference", "rewards/rejected", "loss"]
    assert [m.key for m in others] == ["learning_rate", "other/b", "other/a"]
    assert describe("other/a").title == "other/a"


def test_run_without_reference_leads_with_the_log_probability_itself() -> None:
    main, _ = arrange(["loss", "logps/chosen", "logps/rejected"])
    assert [m.key for m in main] == ["logps/chosen", "logps/rejected", "loss"]
