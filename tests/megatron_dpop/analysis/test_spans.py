"""Before, at and after the first differing token: small pairs whose means are taken by hand."""

import numpy as np
import pytest

from megatron_dpop.analysis.line_chart import ticks
from megatron_dpop.analysis.spans import OFFSETS, SideSummary, share_below, spans, summarise
from megatron_dpop.data.tokenise import common_prefix_tokens


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def logps(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def at(summary: SideSummary, offset: int) -> tuple[float | None, int]:
    found = summary.positions[OFFSETS.index(offset)]
    return found.value, found.count


@pytest.mark.parametrize(
    ("chosen", "rejected", "common"),
    [
        ((5, 6, 7, 8), (5, 6, 9, 8), 2),  # "2 + 2 = 4" against "2 + 2 = 5"
        ((7, 8), (9, 8), 0),
        ((5, 6, 4), (5, 6, 6, 4), 2),
        ((5, 6), (5, 6, 7), 2),  # one goes on where the other ends
    ],
)
def test_common_tokens(chosen: tuple[int, ...], rejected: tuple[int, ...], common: int) -> None:
    assert common_prefix_tokens([tokens(*chosen), tokens(*rejected)]) == common


def test_the_three_spans_are_all_tokens_once() -> None:
    for common in range(4):
        values = np.arange(3)
        assert np.concatenate([values[part] for part in spans(common).values()]).tolist() == [0, 1, 2]


def test_means_over_tokens_of_all_pairs() -> None:
    # Two shared tokens, then the differing one, then two; and a pair that differs at once.
    summary = summarise([logps(-1, -2, -10, -3, -5), logps(-20, -4)], common=[2, 0])
    assert {name: (part.value, part.count) for name, part in summary.spans.items()} == {
        "before": (-1.5, 2),
        "first": (-15.0, 2),
        "after": (-4.0, 3),
    }
    assert (summary.completion.value, summary.completion.count) == (-22.5, 2)
    assert at(summary, -2) == (-1.0, 1)
    assert at(summary, -1) == (-2.0, 1)
    assert at(summary, 0) == (-15.0, 2)
    assert at(summary, 1) == (-3.5, 2)
    assert at(summary, 2) == (-5.0, 1)
    assert at(summary, 3) == (None, 0)


def test_a_span_without_tokens_has_no_mean() -> None:
    summary = summarise([logps(-1, -2)], common=[2])
    assert summary.spans["first"].value is None
    assert summary.spans["after"].count == 0


def test_share_of_completions_that_fell_after_the_edit() -> None:
    model = [logps(-9, -9, -3), logps(-9, -9, -1), logps(-9)]
    reference = [logps(-1, -1, -2), logps(-1, -1, -2), logps(-1)]
    found = share_below(model, reference, common=[1, 1, 0])
    assert (found.value, found.count) == (0.5, 2)  # the third has no token after the first differing one


def test_a_chart_of_nothing_but_zeros_has_an_axis() -> None:
    assert ticks(0.0, 0.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
