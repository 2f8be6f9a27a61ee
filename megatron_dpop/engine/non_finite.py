"""Stops every rank where a number of one of them is not finite, and says where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.engine.batches import Examples, RowBatch
from megatron_dpop.engine.engine import ModelEngine

MOST_NAMED = 5


class NonFiniteError(RuntimeError):
    """The run cannot go on: a loss or a gradient is not a number."""

    is_explained = True  # the message says it all: no traceback


@dataclass(frozen=True)
class FiniteCheck:
    """Which examples of a row have a value that is not finite; looked at only where the step's mean shows one."""

    example_ids: NDArray[np.int64]  # [examples], index into the dataset
    is_bad: Tensor  # bool [examples], on the device

    @classmethod
    def of(cls, row: RowBatch, values: Tensor) -> "FiniteCheck":
        """values [examples]"""
        return cls(row.row.example_ids, ~torch.isfinite(values))

    def bad_examples(self) -> list[int]:
        """Returns indices into the dataset. Waits for the device."""
        return [int(at) for at, is_bad in zip(self.example_ids, self.is_bad.tolist(), strict=True) if is_bad]


class Checked(Protocol):
    """What a `RowLoss` collects, of a pass whose values must be finite."""

    @property
    def check(self) -> FiniteCheck: ...


def raise_non_finite(engine: ModelEngine, collected: Sequence[Checked], dataset: Examples, what: str) -> NoReturn:
    """Raises NonFiniteError on all ranks, naming ranks and examples. Every rank must call it."""
    mine: list[int] = []
    if engine.is_metrics_rank:
        for row in collected:
            mine += row.check.bad_examples()
    everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    where = "; ".join(f"rank {rank}: {named(dataset, bad)}" for rank, bad in enumerate(everyone) if bad)
    raise NonFiniteError(f"{what} ({where}); lower optimizer.lr, or look at these examples")


def named(dataset: Examples, examples: Sequence[int]) -> str:
    """Examples in words: their places in the dataset, counted from 0, with their sources."""
    shown = [f"example {at} ({dataset.source_names[dataset.source_index[at]]})" for at in examples[:MOST_NAMED]]
    more = len(examples) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
