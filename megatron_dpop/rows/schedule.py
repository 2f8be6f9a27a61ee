"""Which examples a step trains on, and in which rows: arithmetic on (seed, step, lengths), so resuming is exact.

The order of examples depends on nothing but the seed. Only how a step's examples are spread over rows depends on
the number of data-parallel ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megatron_dpop.rows.packing import pack, step_row_tokens
from megatron_dpop.rows.row import Ints


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, examples: int) -> Ints:
    return np.random.default_rng((seed, epoch)).permutation(examples)


def step_examples(*, seed: int, step: int, batch: int, examples: int) -> list[int]:
    """Dataset indices of a step's examples. Each epoch is a fresh permutation; a step may span two epochs."""
    consumed = np.arange(step * batch, (step + 1) * batch)
    epochs, places = np.divmod(consumed, examples)
    parts = [_epoch_order(seed, int(epoch), examples)[places[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts).tolist()


@dataclass(frozen=True)
class StepPlan:
    """The rows of one step, each `row_tokens` long: dataset indices, by data-parallel rank, equally many rows each."""

    by_rank: tuple[tuple[tuple[int, ...], ...], ...]
    row_tokens: int

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Those of all ranks, one rank after the other."""
        return tuple(row for rows in self.by_rank for row in rows)


def plan_rows(
    indices: Sequence[int],
    tokens: Ints,
    flops: Ints,
    *,
    capacity_tokens: int,
    multiple: int,
    data_parallel: int,
    rows_multiple: int = 1,
) -> StepPlan:
    """Packs these examples into as many rows for each of `data_parallel` ranks.

    tokens and flops int64 [examples of the dataset]: what each takes in a row, and costs. Rows end on a multiple of
    `multiple` tokens; a rank's number of rows is a multiple of `rows_multiple`, as an interleaved pipeline asks.
    """
    taken = np.asarray(indices, dtype=np.int64)
    packed = pack(
        tokens[taken],
        flops[taken],
        capacity_tokens=capacity_tokens,
        multiple=multiple,
        ranks=data_parallel,
        rows_multiple=rows_multiple,
    )
    by_rank = tuple(tuple(tuple(indices[at] for at in row) for row in rows) for rows in packed)
    used = [int(tokens[list(row)].sum()) for rows in by_rank for row in rows]
    return StepPlan(by_rank, step_row_tokens(used, capacity_tokens=capacity_tokens, multiple=multiple))
