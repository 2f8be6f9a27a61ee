"""Stops every rank where a number of one of them is not finite, and says where."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_dpop.engine.batches import Examples, RowBatch
from megatron_dpop.engine.engine import ModelEngine

MOST_NAMED = 5


class NonFiniteError(RuntimeError):
    """The run cannot go on: a loss or a gradient is not a number."""

    is_explained = True  # the message says it all: no traceback


def non_finite(row: RowBatch, values: Tensor) -> dict[str, Any]:
    """What a `RowLoss` collects for `stop`: which examples of the row have a bad value. values [examples]"""
    return {"non_finite": (row.row.example_ids, ~torch.isfinite(values))}


def stop(engine: ModelEngine, collected: Sequence[dict[str, Any]], dataset: Examples, what: str) -> NoReturn:
    """Raises NonFiniteError on all ranks, naming ranks and examples. Every rank must call it."""
    mine: list[int] = []
    if engine.reports:
        for row in collected:
            ids, bad = row["non_finite"]
            mine += [int(example) for example, is_bad in zip(ids, bad.tolist(), strict=True) if is_bad]
    everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    where = "; ".join(f"rank {rank}: {named(dataset, bad)}" for rank, bad in enumerate(everyone) if bad)
    raise NonFiniteError(f"{what} ({where}); lower optimizer.lr, or look at these examples")


def named(dataset: Examples, examples: Sequence[int]) -> str:
    """Examples in words: their places in the dataset, counted from 0, with their sources."""
    shown = [f"example {at} ({dataset.source_names[dataset.source_index[at]]})" for at in examples[:MOST_NAMED]]
    more = len(examples) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
