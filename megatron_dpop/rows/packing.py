"""Balanced packing of one step's examples into rows. A pure function of their sizes.

Two things must be even: the rows in tokens, since all rows of a step are as long as the fullest, and the data-parallel
ranks in FLOPs, since they wait for each other at the step's end. Tokens come first; then examples are exchanged between
ranks until FLOPs are even too, as far as no row grows past the length that the tokens ask for.

Sums and comparisons are of integers: every rank makes the plan for itself, and floating-point sums may differ between
processors.
"""

import heapq
import itertools
from collections.abc import Sequence

import numpy as np

from megatron_dpop.rows.row import Ints

# Rows are planned for at most this share of the capacity, so that exchanges can succeed. Rows are cut to the fullest
# one: no token is lost.
TARGET_FILL_PERCENT = 98
# Rows may be made longer for the sake of even FLOPs as long as they stay this full.
LEAST_FILL_PERMILLE = 975
EVEN_TOKENS_PERMILLE = 2  # of the mean row: closer is not sought
EVEN_FLOPS_PERMILLE = 10  # of the mean rank, between the costliest and the cheapest
# Below this many examples a row, single exchanges are too coarse, and two examples may go at once.
FEW_A_ROW = 8
EXCHANGES_PER_ROW = 8


def pack(
    tokens: Ints, flops: Ints, *, capacity_tokens: int, multiple: int = 1, ranks: int = 1, rows_multiple: int = 1
) -> list[list[list[int]]]:
    """Gives each rank its rows, equally many (a multiple of `rows_multiple`), that together hold every example once.

    tokens and flops int64 [examples]; a row holds `capacity_tokens`, and rows will end on a `multiple`. Indices ascend
    within a row, and a rank's costliest rows come first; rows can be empty when examples are few.
    """
    assert tokens.max(initial=0) <= capacity_tokens, "an example is longer than a row"
    total = int(tokens.sum())
    rows = max(1, -(-total * 100 // (TARGET_FILL_PERCENT * capacity_tokens)))
    rows = _up(rows, ranks * rows_multiple)
    while True:
        packing = _Packing(tokens, _longest_first(tokens, rows))
        _even_tokens(packing, goal=_up(-(-total * (1000 + EVEN_TOKENS_PERMILLE) // (1000 * rows)), multiple))
        fullest = int(packing.used.max())
        if fullest <= capacity_tokens:
            break
        rows += ranks * rows_multiple
    longer = total * 1000 // (LEAST_FILL_PERMILLE * rows) // multiple * multiple
    _even_flops(packing, flops, ranks=ranks, row_limit=min(capacity_tokens, max(_up(fullest, multiple), longer)))
    cost = [int(flops[row].sum()) for row in packing.rows]
    return [
        [sorted(packing.rows[row]) for row in sorted(range(rank, rows, ranks), key=lambda row: -cost[row])]
        for rank in range(ranks)
    ]


def step_row_tokens(row_lengths: Sequence[int], *, capacity_tokens: int, multiple: int) -> int:
    """Length of every row of a step: its fullest row, rounded up; never more than the capacity.

    Rows of one step share a length, since pipeline stages exchange tensors of one shape; a shorter step pads less.
    """
    return max(multiple, min(capacity_tokens, _up(max(row_lengths, default=0), multiple)))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _longest_first(tokens: Ints, rows: int) -> list[list[int]]:
    """Longest example first, each to the emptiest row (LPT): the fullest is at most 4/3 of the optimum."""
    packed: list[list[int]] = [[] for _ in range(rows)]
    emptiest = [(0, row) for row in range(rows)]
    for index in np.lexsort((np.arange(len(tokens)), -tokens)).tolist():
        used, row = heapq.heappop(emptiest)
        packed[row].append(index)
        heapq.heappush(emptiest, (used + int(tokens[index]), row))
    return packed


class _Packing:
    """Rows that exchange examples. Row r belongs to rank r modulo the number of ranks."""

    def __init__(self, tokens: Ints, rows: list[list[int]]) -> None:
        self.rows = rows
        self.none = len(tokens)  # stands for no example
        self.tokens = np.append(tokens, 0)
        self.used = np.array([self.tokens[row].sum() for row in rows])  # tokens [rows]
        self.two_at_once = len(tokens) < FEW_A_ROW * len(rows)
        self._offers = [self._offers_of(row) for row in rows]

    def offers(self, rows: Sequence[int]) -> tuple[Ints, Ints]:
        """What these rows can give away, [offers, 2] examples, nothing included; and the row of each offer."""
        offers = [self._offers[row] for row in rows]
        return np.concatenate(offers), np.repeat(np.asarray(rows), [len(each) for each in offers])

    def exchange(self, row: int, given: Ints, other: int, taken: Ints) -> None:
        """`row` gives one offer to `other` and takes one."""
        for offer, source, target in ((given, row, other), (taken, other, row)):
            for example in offer.tolist():
                if example != self.none:
                    self.rows[source].remove(example)
                    self.rows[target].append(example)
            moved = self.tokens[offer].sum()
            self.used[source] -= moved
            self.used[target] += moved
        for changed in (row, other):
            self._offers[changed] = self._offers_of(self.rows[changed])

    def _offers_of(self, row: list[int]) -> Ints:
        offers = [(self.none, self.none), *((example, self.none) for example in row)]
        if self.two_at_once:
            offers += itertools.combinations(row, 2)
        return np.array(offers, dtype=np.int64)


def _even_tokens(packing: _Packing, *, goal: int) -> None:
    """Exchanges offers of the fullest row until it holds at most `goal` tokens, or nothing makes it emptier.

    Each time the exchange after which the fuller of the two rows is emptiest.
    """
    for _ in range(EXCHANGES_PER_ROW * len(packing.rows)):
        fullest = int(packing.used.argmax())
        used = packing.used[fullest]
        if used <= goal:
            return
        offers, row = packing.offers(range(len(packing.rows)))
        size = packing.tokens[offers].sum(axis=1)
        ours, theirs = np.flatnonzero(row == fullest), np.flatnonzero(row != fullest)
        if not len(theirs):
            return
        moved = size[ours][:, None] - size[theirs]
        fuller = np.maximum(used - moved, packing.used[row[theirs]] + moved)
        given, taken = divmod(int(fuller.argmin()), len(theirs))
        if fuller[given, taken] >= used:
            return
        packing.exchange(fullest, offers[ours[given]], int(row[theirs[taken]]), offers[theirs[taken]])


def _even_flops(packing: _Packing, flops: Ints, *, ranks: int, row_limit: int) -> None:
    """Exchanges offers between ranks until their FLOPs are even, or nothing brings them closer.

    Each time between the two ranks that are farthest apart, of those where an exchange helps that leaves every row
    within `row_limit` tokens.
    """
    flops = np.append(flops, 0)
    cost = np.array([flops[list(itertools.chain(*packing.rows[rank::ranks]))].sum() for rank in range(ranks)])
    near = int(cost.sum()) * EVEN_FLOPS_PERMILLE // (1000 * ranks)
    for _ in range(EXCHANGES_PER_ROW * len(packing.rows)):
        order = np.argsort(cost, kind="stable").tolist()
        if cost[order[-1]] - cost[order[0]] <= near:
            return
        pairs = {(order[-1], other) for other in order[:-1]} | {(other, order[0]) for other in order[1:]}
        for high, low in sorted(pairs, key=lambda pair: (int(cost[pair[1]] - cost[pair[0]]), pair)):
            moved = _move_flops(packing, flops, int(cost[high] - cost[low]) // 2, high, low, ranks, row_limit)
            if moved:
                cost[high] -= moved
                cost[low] += moved
                break
        else:
            return


def _move_flops(packing: _Packing, flops: Ints, wanted: int, high: int, low: int, ranks: int, row_limit: int) -> int:
    """The exchange that takes nearest to `wanted` FLOPs from rank `high` to rank `low`; how many it took.

    None, and 0, where even the best leaves more than nine tenths of what is wanted, or a row would grow too long.
    """
    rows = len(packing.rows)
    ours, our_row = packing.offers(range(high, rows, ranks))
    theirs, their_row = packing.offers(range(low, rows, ranks))
    tokens = packing.tokens[ours].sum(axis=1)[:, None] - packing.tokens[theirs].sum(axis=1)
    fits = (packing.used[our_row][:, None] - tokens <= row_limit) & (packing.used[their_row] + tokens <= row_limit)
    moved = flops[ours].sum(axis=1)[:, None] - flops[theirs].sum(axis=1)
    missed = np.where(fits, np.abs(moved - wanted), wanted)
    given, taken = divmod(int(missed.argmin()), len(theirs))
    if missed[given, taken] * 10 >= wanted * 9:
        return 0
    packing.exchange(int(our_row[given]), ours[given], int(their_row[taken]), theirs[taken])
    return int(moved[given, taken])
