"""Frequencies of rotary positions, with every kind of scaling that transformers and Megatron-Core agree on.

Each is computed in fp32 operation by operation as transformers does: a last bit of a frequency is multiplied by
positions of up to a million.
"""

import math
from functools import singledispatch

import torch
from torch import Tensor

from dpop_base.architectures.architecture import (
    Architecture,
    LinearScaling,
    RopeScaling,
    ShortScaling,
    YarnScaling,
)


def frequencies(a: Architecture, *, sliding: bool = False) -> tuple[Tensor, float]:
    """fp32 [rotary_dim / 2] angles of one position, and what multiplies their cosines and sines.

    sliding: of the layers that slide a window, where theirs are others.
    """
    if sliding and a.sliding_rope_theta is not None:
        return _scaled(None, _waves(a.sliding_rope_theta, a.rotary_dim), a.sliding_rope_theta)
    return _scaled(a.rope_scaling, _waves(a.rope_theta, a.rotary_dim), a.rope_theta)


def _waves(theta: float, dim: int) -> Tensor:
    """Wave lengths divided by 2 pi, of each pair of dimensions."""
    return theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


@singledispatch
def _scaled(scaling: object, waves: Tensor, theta: float) -> tuple[Tensor, float]:
    """Returns the frequencies without scaling."""
    assert scaling is None, scaling
    return 1.0 / waves, 1.0


@_scaled.register
def _linear(scaling: LinearScaling, waves: Tensor, theta: float) -> tuple[Tensor, float]:
    return 1.0 / waves / scaling.factor, 1.0


@_scaled.register
def _llama3(scaling: RopeScaling, waves: Tensor, theta: float) -> tuple[Tensor, float]:
    """Waves longer than the original length are divided by the factor, those that fit often into it are kept."""
    kept = 1.0 / waves
    length = 2 * math.pi / kept
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (original / length - low) / (high - low)
    between = (1 - smooth) * kept / scaling.factor + smooth * kept
    result = torch.where(length > original / low, kept / scaling.factor, between)
    return torch.where(length < original / high, kept, result), 1.0


@_scaled.register
def _yarn(scaling: YarnScaling, waves: Tensor, theta: float) -> tuple[Tensor, float]:
    dim = 2 * len(waves)

    def dimension(rotations: float) -> float:
        """Whose wave turns this often within the original length."""
        turns = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(len(waves), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    divided = 1.0 / (scaling.factor * waves)
    return divided * (1 - kept) + 1.0 / waves * kept, scaling.attention_factor


@_scaled.register
def _short(scaling: ShortScaling, waves: Tensor, theta: float) -> tuple[Tensor, float]:
    return 1.0 / (torch.tensor(scaling.factors, dtype=torch.float32) * waves), scaling.attention_factor
