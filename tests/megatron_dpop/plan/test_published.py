"""The plan beside published measurements of the same models, layouts and precisions on H100s."""

from pathlib import Path

import pytest
from published import POINTS, TOLERANCE, Published, planned, table, table_apart

PAGE = Path(__file__).parents[3] / "docs" / "plan.md"


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.model}, {p.task}, {p.source}, {p.gpus} GPUs, {p.fp8=}")
def test_planned_throughput_is_near_the_published_one(point: Published) -> None:
    assert planned(point) == pytest.approx(point.tokens_per_second, rel=TOLERANCE)


def test_the_page_shows_what_the_tool_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text
    assert table_apart() in text
