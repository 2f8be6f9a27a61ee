"""Rotary embedding at positions that are given for each token, not counted along the row.

Megatron-Core would compute every layer's cosines and sines anew, twice, and pass six times over queries and keys. Here
the angles' cosines and sines are computed once a row, and `megatron_dpop.models.attention` rotates with them.
"""

from typing import Any

import torch
from torch import Tensor

from checkpoint_convert.frequencies import frequencies
from dpop_base.architectures import Architecture
from megatron_dpop.models.layout import Rotation, RowLayout


class RowRotaryEmbedding(torch.nn.Module):
    """Stands in for `GPTModel.rotary_pos_emb`: same angles, taken at the row's positions and left in its layout."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.interleaved = architecture.rotary_interleaved
        # Plain attributes, which a model's conversion to bf16 leaves alone.
        self.waves = frequencies(architecture)
        self.sliding_waves = (
            frequencies(architecture, sliding=True) if architecture.sliding_rope_theta is not None else self.waves
        )

    def get_rotary_seq_len(self, *args: Any, **_: Any) -> RowLayout:
        """Megatron asks here how many positions it needs and hands the answer to `forward`: give it the layout."""
        layout = args[4]
        assert isinstance(layout, RowLayout), "rows carry their positions in a RowLayout"
        return layout

    def forward(self, layout: RowLayout, **_: Any) -> None:
        """Megatron's attention rotates nothing where it is given nothing."""
        if self.waves[0].device != layout.positions.device:  # at the first row: a copy of its own for each would wait
            shared = self.sliding_waves is self.waves
            self.waves = _moved(self.waves, layout.positions.device)
            self.sliding_waves = self.waves if shared else _moved(self.sliding_waves, layout.positions.device)
        layout.rotation = layout.sliding_rotation = self._rotation(self.waves, layout.positions)
        if self.sliding_waves is not self.waves:
            layout.sliding_rotation = self._rotation(self.sliding_waves, layout.positions)

    def _rotation(self, waves: tuple[Tensor, float], positions: Tensor) -> Rotation:
        per_position, factor = waves
        angles = torch.outer(positions.float(), per_position)[:, None]
        return Rotation(angles.cos() * factor, angles.sin() * factor, self.interleaved)


def _moved(waves: tuple[Tensor, float], device: torch.device) -> tuple[Tensor, float]:
    return waves[0].to(device), waves[1]


def rotate(states: Tensor, rotation: Rotation | None, dtype: torch.dtype) -> Tensor:
    """Rotates pairs of each head's first dimensions by the token's angles: halves, or even against odd; or nothing.

    states [tokens, heads, head_dim] to `dtype` [tokens, heads, head_dim], in which it is computed.
    """
    if rotation is None:
        return states.to(dtype)
    return _Rotate.apply(states, rotation.cosines.to(dtype), rotation.sines.to(dtype), rotation.interleaved)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
        ctx.dtype, ctx.interleaved = states.dtype, interleaved
        ctx.save_for_backward(cosines, sines)
        return _rotated(states.to(cosines.dtype), cosines, sines, interleaved=interleaved, sign=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        result = _rotated(grad, *ctx.saved_tensors, interleaved=ctx.interleaved, sign=-1)
        return result.to(ctx.dtype), None, None, None


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool, sign: int) -> Tensor:
    result = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    width = 2 * cosines.shape[-1]
    if width < states.shape[-1]:
        result[..., width:] = states[..., width:]
    first, second = _pairs(states[..., :width], interleaved)
    turned_first, turned_second = _pairs(result[..., :width], interleaved)
    torch.mul(first, cosines, out=turned_first).addcmul_(second, sines, value=-sign)
    torch.mul(second, cosines, out=turned_second).addcmul_(first, sines, value=sign)
    return result


def _pairs(states: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """What is rotated against what, as views."""
    if interleaved:
        return states[..., ::2], states[..., 1::2]
    first, second = states.chunk(2, dim=-1)
    return first, second
