"""Queries rotated, keys rotated and gathered, values gathered: what the kernels for GPUs attend over."""

from typing import Any

import torch
from torch import Tensor

from megatron_dpop.models.layout import Rotation
from megatron_dpop.models.rotary import rotate
from megatron_dpop.models.varlen import DeviceBlocks


def rotate_and_gather(
    query: Tensor, key: Tensor, value: Tensor, rotation: Rotation | None, blocks: DeviceBlocks | None, *, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, heads, head_dim] each; without `blocks` nothing is gathered."""
    if fused:
        return _RotateAndGather.apply(query, key, value, rotation, blocks)
    query, key = rotate(query, rotation, query.dtype), rotate(key, rotation, key.dtype)
    return query, *((key, value) if blocks is None else gather(key, value, blocks, fused=False))


def gather(key: Tensor, value: Tensor, blocks: DeviceBlocks, *, fused: bool) -> tuple[Tensor, Tensor]:
    """Gathers the rotated keys and values, [tokens, kv_heads, head_dim], that the blocks see."""
    if fused:
        return _RotateAndGather.apply(None, key, value, None, blocks)[1:]
    return key.index_select(0, blocks.key_index), value.index_select(0, blocks.key_index)


class _RotateAndGather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor | None,
        key: Tensor,
        value: Tensor,
        rotation: Rotation | None,
        blocks: DeviceBlocks | None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        from megatron_dpop.kernels.rotary import gather_forward

        ctx.terms, ctx.tokens = _terms(rotation, blocks), len(key)
        return gather_forward(query, key, value, *ctx.terms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, query: Tensor | None, key: Tensor, value: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        from megatron_dpop.kernels.rotary import gather_backward

        angles, copies = ctx.terms
        return *gather_backward(query, key, value, ctx.tokens, angles, copies), None, None


def _terms(rotation: Rotation | None, blocks: DeviceBlocks | None) -> tuple[Any, Any]:
    from megatron_dpop.kernels.rotary import Angles, Copies

    return (
        rotation and Angles(rotation.cosines, rotation.sines, rotation.interleaved),
        blocks and Copies(blocks.key_index, blocks.copy_offsets, blocks.copies),
    )
