"""Rows hold exactly what is to be read and scored, whatever is shared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_dpop.data.examples import TokenizedExample
from megatron_dpop.rows.row import TokenWeights, build_row
from megatron_dpop.rows.shapes import example_shapes
from tests.megatron_dpop.rows.examples import example, examples, lengths_of
from tests.megatron_dpop.rows.walk import contexts, scored, used_tokens

groups = st.lists(examples(), min_size=1, max_size=4)


def _expected(group: list[TokenizedExample]) -> list[list[tuple[tuple[int, ...], int]]]:
    """Each completion's tokens with all that stands before them."""
    sequences = []
    for one in group:
        for completion in one.completions:
            whole = (*one.prompt.tolist(), *completion.tolist())
            sequences.append([(whole[:at], whole[at]) for at in range(len(one.prompt), len(whole))])
    return sequences


@given(group=groups, share=st.booleans())
def test_scored_are_exactly_the_completions(group: list[TokenizedExample], share: bool) -> None:
    row = build_row(group, range(len(group)), row_tokens=256, share_prefix=share)
    assert scored(row) == _expected(group)


@given(group=groups, share=st.booleans(), unscored=st.frozensets(st.integers(0, 4)))
def test_tokens_count_what_their_weights_say(
    group: list[TokenizedExample], share: bool, unscored: frozenset[int]
) -> None:
    weights = TokenWeights(unscored, tail=0.25)
    row = build_row(group, range(len(group)), row_tokens=256, share_prefix=share, weights=weights)
    kept = [[pair for pair in sequence if pair[1] not in unscored] for sequence in _expected(group)]
    assert scored(row) == kept
    assert row.sequence_lengths.tolist() == [len(sequence) for sequence in kept]
    expected = [
        1.0 if at < min(map(len, one.completions)) else 0.25
        for one in group
        for completion in one.completions
        for at, token in enumerate(completion.tolist())
        if token not in unscored
    ]
    assert row.member_weight is not None
    assert row.member_weight.tolist() == expected
    assert build_row(group, range(len(group)), row_tokens=256, share_prefix=share).member_weight is None


@given(group=groups, share=st.booleans())
def test_positions_and_padding(group: list[TokenizedExample], share: bool) -> None:
    row = build_row(group, range(len(group)), row_tokens=256, share_prefix=share)
    seen = contexts(row)
    assert used_tokens(row) == len(seen)
    assert row.positions[: len(seen)].tolist() == [len(context) - 1 for context in seen]
    assert row.tokens[: len(seen)].tolist() == [context[-1] for context in seen]
    assert not row.tokens[len(seen) :].any()
    assert not row.positions[len(seen) :].any()
    assert len(row.tokens) == len(row.positions) == 256


@given(group=groups, share=st.booleans())
def test_members(group: list[TokenizedExample], share: bool) -> None:
    ids = [10 + 3 * at for at in range(len(group))]
    row = build_row(group, ids, row_tokens=256, share_prefix=share)
    counts = [len(one.completions) for one in group]
    assert row.example_ids.tolist() == ids
    assert row.sequence_example.tolist() == [at for at, count in enumerate(counts) for _ in range(count)]
    assert row.sequence_preferred.tolist() == [flag for one in group for flag in one.preferred]
    assert row.sequence_lengths.tolist() == [len(completion) for one in group for completion in one.completions]
    assert np.bincount(row.member_sequence).tolist() == row.sequence_lengths.tolist()
    assert (np.diff(row.member_sequence) >= 0).all()
    # Nothing is scored for nothing, and a completion counts no score twice.
    assert set(row.member_score.tolist()) == set(range(len(row.score_targets)))
    assert len(set(zip(row.member_score.tolist(), row.member_sequence.tolist(), strict=True))) == len(row.member_score)


@given(group=groups, share=st.booleans())
def test_shapes_are_those_of_the_row(group: list[TokenizedExample], share: bool) -> None:
    lengths = lengths_of(group)
    shapes = example_shapes(
        lengths.prompt_tokens, lengths.completion_tokens, lengths.common_prefix_tokens, share_prefix=share
    )
    for at, one in enumerate(group):
        row = build_row([one], [at], row_tokens=256, share_prefix=share)
        assert shapes.row_tokens[at] == used_tokens(row)
        assert shapes.scores[at] == len(row.score_targets)
        assert shapes.attended[at] == sum(len(context) for context in contexts(row))


@pytest.mark.parametrize(
    ("completions", "trees", "scores"),
    [
        pytest.param([[5, 6, 7], [5, 6, 8]], ((4, 0, 0),), 4, id="last token differs"),
        pytest.param([[5, 6], [5, 6, 7]], ((3, 0, 1),), 3, id="one inside the other"),
        pytest.param([[5], [6]], ((2, 0, 0),), 2, id="one token each"),
        pytest.param([[5], [5, 6]], ((2, 0, 1),), 2, id="one token, inside the other"),
        pytest.param([[5, 6, 7], [8, 9]], ((2, 2, 1),), 5, id="nothing shared"),
        pytest.param([[5, 6, 7]], ((4, 0),), 3, id="one completion"),
        pytest.param([[5, 6, 7], [5, 9], [5, 6]], ((3, 1, 0, 0),), 5, id="three completions"),
    ],
)
def test_trees_by_hand(completions: list[list[int]], trees: tuple, scores: int) -> None:
    row = build_row([example([1, 2], completions)], [0], row_tokens=16, share_prefix=True)
    assert row.trees == trees
    assert len(row.score_targets) == scores


def test_sharing_reads_shared_tokens_once() -> None:
    pair = example([1] * 10, [[2] * 20 + [3, 4], [2] * 20 + [5, 4]])
    shared = build_row([pair], [0], row_tokens=64, share_prefix=True)
    unshared = build_row([pair], [0], row_tokens=64, share_prefix=False)
    assert (used_tokens(shared), len(shared.score_targets)) == (32, 24)
    assert (used_tokens(unshared), len(unshared.score_targets)) == (62, 44)


def test_an_empty_row_is_all_padding() -> None:
    row = build_row([], [], row_tokens=64, share_prefix=True)
    assert row.trees == ()
    assert used_tokens(row) == 0
    assert not row.tokens.any()
    for name in ("score_positions", "score_targets", "member_score", "member_sequence", "sequence_lengths"):
        assert getattr(row, name).shape == (0,)
        assert getattr(row, name).dtype == np.int64
    assert row.sequence_preferred.dtype == np.bool_


def test_what_cannot_be_a_row_is_refused() -> None:
    with pytest.raises(AssertionError, match="do not fit"):
        build_row([example([1, 2, 3], [[4, 5], [6, 5]])], [0], row_tokens=4, share_prefix=True)
    with pytest.raises(AssertionError, match="needs a token before it"):
        build_row([example([], [[4], [5]])], [0], row_tokens=8, share_prefix=True)
