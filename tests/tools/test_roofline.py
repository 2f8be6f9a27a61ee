"""The page's table of operations is what the tool prints, and adds up."""

from pathlib import Path

import pytest
from roofline import MODELS, Assumed, Operation, operations, table, useful_flops

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_page_shows_what_the_tool_prints() -> None:
    assert table(Assumed()) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_fusing_brings_ten_points_of_utilisation(model) -> None:
    rates, row = Assumed(), Operation()
    before, after = (
        useful_flops(model, row) / sum(operations(model, row, rates, fused=fused).values()) / rates.peak
        for fused in (False, True)
    )
    assert before < 0.5
    assert after > 0.55


def test_no_operation_became_slower() -> None:
    for model in MODELS:
        before, after = (operations(model, Operation(), Assumed(), fused=fused) for fused in (False, True))
        assert before.keys() == after.keys()
        assert all(after[name] <= before[name] for name in before)
