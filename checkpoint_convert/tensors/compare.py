"""Two tensors of any two checkpoints compared, a bounded stretch of rows at a time."""

import math
from dataclasses import dataclass

import torch

from checkpoint_convert.tensors.source import TensorSource
from checkpoint_convert.tensors.stretches import stretches
from checkpoint_convert.tensors.torch_dtypes import TORCH


@dataclass(frozen=True)
class Difference:
    """`worst` is the largest absolute difference, at `index`; `num_different` counts elements that differ at all."""

    worst: float
    index: tuple[int, ...]
    num_different: int


def difference(source: TensorSource, name: str, other_source: TensorSource, other: str) -> Difference:
    """Two tensors of one shape, in fp32. NaN equals NaN of the same bits only."""
    a_info, b_info = source.tensors[name], other_source.tensors[other]
    assert a_info.shape == b_info.shape, (name, other)
    columns = a_info.shape[1:]
    worst, where, count = 0.0, 0, 0
    for a, b, first in stretches(source, name, other_source, other):
        if a_info.dtype == b_info.dtype and a == b:
            continue
        x = torch.frombuffer(a, dtype=TORCH[a_info.dtype]).float()
        y = torch.frombuffer(b, dtype=TORCH[b_info.dtype]).float()
        gap = (x - y).abs().nan_to_num(nan=float("inf"))
        count += int(torch.count_nonzero(gap))
        largest, at = gap.max(0)
        if float(largest) > worst:
            worst, where = float(largest), first * math.prod(columns) + int(at)
    return Difference(worst, tuple(int(i) for i in torch.unravel_index(torch.tensor(where), a_info.shape)), count)
