"""Rotary embedding at positions that are given for each token, not counted along the row.

Megatron-Core would compute every layer's cosines and sines anew, twice, and pass six times over queries and keys. Here
the angles' cosines and sines are computed once a row, and `megatron_dpop.models.attention` rotates with them.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from checkpoint_convert.architectures import Architecture
from megatron_dpop.models.layout import RowLayout


class RowRotaryEmbedding(RotaryEmbedding):
    """Stands in for `GPTModel.rotary_pos_emb`: same angles, taken at the row's positions and left in its layout."""

    inv_freq: Tensor  # fp32 [head_dim / 2]

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(
            kv_channels=architecture.head_dim,
            rotary_percent=1.0,
            rotary_base=architecture.rope_theta,
        )
        scaling = architecture.rope_scaling
        if scaling is not None:
            self.inv_freq = self._apply_scaling(
                self.inv_freq,
                factor=scaling.factor,
                low_freq_factor=scaling.low_freq_factor,
                high_freq_factor=scaling.high_freq_factor,
                original_max_position_embeddings=scaling.original_max_position_embeddings,
            )

    def get_rotary_seq_len(self, *args: Any, **_: Any) -> RowLayout:
        """Megatron asks here how many positions it needs and hands the answer to `forward`: give it the layout."""
        layout = args[4]
        assert isinstance(layout, RowLayout), "rows carry their positions in a RowLayout"
        return layout

    def forward(self, layout: RowLayout, **_: Any) -> None:
        """Megatron's attention rotates nothing where it is given nothing."""
        angles = torch.outer(layout.positions.float(), self.inv_freq)[:, None]
        layout.cosines, layout.sines = angles.cos(), angles.sin()


def rotate(states: Tensor, layout: RowLayout, dtype: torch.dtype) -> Tensor:
    """Rotates each head's first half against its second by the token's angles.

    states [tokens, heads, head_dim] to `dtype` [tokens, heads, head_dim], in which it is computed.
    """
    return _Rotate.apply(states, layout.cosines.to(dtype), layout.sines.to(dtype))


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.dtype = states.dtype
        ctx.save_for_backward(cosines, sines)
        return _rotated(states.to(cosines.dtype), cosines, sines, sign=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grad, *ctx.saved_tensors, sign=-1).to(ctx.dtype), None, None


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor, *, sign: int) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    result = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    turned_first, turned_second = result.chunk(2, dim=-1)
    torch.mul(first, cosines, out=turned_first).addcmul_(second, sines, value=-sign)
    torch.mul(second, cosines, out=turned_second).addcmul_(first, sines, value=sign)
    return result
