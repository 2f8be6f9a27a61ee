"""Rows are full, and data-parallel ranks cost the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dpop.rows.packing import pack, step_row_tokens

CAPACITY = 64
sizes = st.lists(st.tuples(st.integers(1, CAPACITY), st.integers(0, CAPACITY**2)), max_size=40).map(
    lambda items: np.array(items, dtype=np.int64).reshape(len(items), 2)
)


def _pack(sizes: np.ndarray, *, capacity_tokens: int = CAPACITY, multiple: int = 1, ranks: int = 1) -> list:
    return pack(sizes[:, 0], sizes[:, 1], capacity_tokens=capacity_tokens, multiple=multiple, ranks=ranks)


@settings(max_examples=300, deadline=None)
@given(sizes=sizes, ranks=st.integers(1, 5), multiple=st.sampled_from([1, 8, 48]))
def test_every_example_is_in_one_row_that_holds_it(sizes: np.ndarray, ranks: int, multiple: int) -> None:
    by_rank = _pack(sizes, ranks=ranks, multiple=multiple)
    assert len(by_rank) == ranks
    assert len({len(rows) for rows in by_rank}) == 1
    assert len(by_rank[0]) > 0
    held = [row for rows in by_rank for row in rows]
    assert sorted(index for row in held for index in row) == list(range(len(sizes)))
    assert all(row == sorted(row) for row in held)
    assert max(sizes[row, 0].sum() for row in held) <= CAPACITY
    for rows in by_rank:
        cost = [int(sizes[row, 1].sum()) for row in rows]
        assert cost == sorted(cost, reverse=True)


def test_no_more_rows_than_the_tokens_need() -> None:
    sizes = np.array([[8, 36]] * 24, dtype=np.int64)  # 192 tokens: three rows of 64, four with room to exchange
    assert len(_pack(sizes)[0]) == 4
    assert len(_pack(sizes, capacity_tokens=192)[0]) == 2
    assert len(_pack(sizes[:7])[0]) == 1
    assert [len(rows) for rows in _pack(sizes[:7], ranks=4)] == [1] * 4


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7, 6, 5, 4, 4], [13, 13]),  # longest first gives 15 and 11
        ([8, 8, 8, 6, 6, 6, 6], [24, 24]),  # 26 and 22, and no exchange of one for one helps: two against one or two
    ],
)
def test_exchanges_even_out_what_longest_first_cannot(tokens: list[int], expected: list[int]) -> None:
    sizes = np.stack((tokens, tokens), axis=1)
    (rows,) = _pack(sizes, capacity_tokens=25)
    assert sorted(int(sizes[row, 0].sum()) for row in rows) == expected


def test_ranks_of_equal_tokens_are_even_in_flops_too() -> None:
    """One example costs as much as fourteen others of its length; the rest makes up for it, and rows stay full."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(40, 70, 128)
    flops = tokens * np.where(np.arange(128) == 5, 700, draw.integers(20, 80, 128))
    by_rank = pack(tokens, flops, capacity_tokens=1024, multiple=16, ranks=4)
    cost = [sum(int(flops[row].sum()) for row in rows) for rows in by_rank]
    assert max(cost) / min(cost) < 1.011
    used = [int(tokens[row].sum()) for rows in by_rank for row in rows]
    assert sum(used) / (len(used) * step_row_tokens(used, capacity_tokens=1024, multiple=16)) > 0.975


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(AssertionError, match="longer than a row"):
        _pack(np.array([[65, 1]]))


@pytest.mark.parametrize(
    ("lengths", "expected"), [([], 64), ([0, 0], 64), ([1], 64), ([64], 64), ([65, 12], 128), ([990], 1000)]
)
def test_rows_end_on_a_multiple_and_within_the_capacity(lengths: list[int], expected: int) -> None:
    assert step_row_tokens(lengths, capacity_tokens=1000, multiple=64) == expected
