"""Attention over trees: a token sees earlier tokens of its own segment and all of its trunk.

Under context parallelism each rank holds part of the queries and gathers the whole row's keys and values: with the few
key/value heads of today's models they are small beside everything else, every kind of tree works, and no rank waits
for another within a layer as it would passing keys around a ring.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from dpop_base.architectures import Architecture
from megatron_dpop.models.gathered import gather, rotate_and_gather
from megatron_dpop.models.layout import Rotation, RowLayout
from megatron_dpop.models.rotary import rotate
from megatron_dpop.models.varlen import Kernel, cudnn_kernel, flash_kernel
from megatron_dpop.rows.context import AttentionPlan, gathered_order


class TreeAttention(MegatronModule):
    """Core attention of the layer spec; its cost follows the trees and not the row's square."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,  # of the whole model, from 1
        *_: Any,
        architecture: Architecture,
        pg_collection: ProcessGroupCollection,
        **__: Any,
    ) -> None:
        super().__init__(config=config)
        layer = layer_number - 1
        self.softmax_scale = architecture.attention_scale or 1.0 / math.sqrt(architecture.head_dim)
        self.window = architecture.window(layer)
        self.is_rotated = layer not in architecture.unrotated_layers
        self.context_group = pg_collection.cp
        self.fused = config.fused_kernels
        self.kernel: Kernel | None = None

    def forward(
        self,
        query: Tensor,  # [tokens / cp, 1, heads / tp, head_dim]
        key: Tensor,  # [tokens / cp, 1, kv_heads / tp, head_dim]
        value: Tensor,  # [tokens / cp, 1, kv_heads / tp, head_dim]
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: RowLayout,
        **_: Any,
    ) -> Tensor:  # [tokens / cp, 1, heads / tp * head_dim]
        if query.is_cuda and query.dtype is not torch.float32:
            mixed = self._attend_on_gpu(query[:, 0], key[:, 0], value[:, 0], packed_seq_params)
            return mixed.reshape(query.shape[0], 1, -1)
        # torch's fused attention on CPUs is faster in fp32 than in bf16, with its gradient: by a third at the
        # lengths of most pairs with matrix tiles, twice without.
        dtype = torch.promote_types(query.dtype, torch.float32)
        rotation = self._rotation(packed_seq_params)
        rotated_query, keys, values = (
            rotate(query[:, 0], rotation, dtype),
            rotate(key[:, 0], rotation, dtype),
            value[:, 0],
        )
        if self.context_group.size() > 1:
            gathered = gather_row(torch.cat((keys.to(value.dtype), values), dim=1), self.context_group)
            keys, values = gathered.chunk(2, dim=1)
        if not any(packed_seq_params.attention.seen):  # padding alone, whose gradients others still wait for
            nothing = 0 * rotated_query + 0 * (keys.sum() + values.sum()).to(dtype)
            return nothing.to(query.dtype).reshape(query.shape[0], 1, -1)
        mixed = attend_blocks(
            rotated_query,
            keys.to(dtype),
            values.to(dtype),
            packed_seq_params.attention,
            softmax_scale=self.softmax_scale,
            window=self.window,
        )
        return mixed.to(query.dtype).reshape(query.shape[0], 1, -1)

    def _rotation(self, layout: RowLayout) -> Rotation | None:
        """This layer's kind of it; none where it rotates nothing."""
        if not self.is_rotated:
            return None
        rotation = layout.rotation if self.window is None else layout.sliding_rotation
        assert rotation is not None, "RowRotaryEmbedding fills it in"
        return rotation

    def _attend_on_gpu(self, query: Tensor, key: Tensor, value: Tensor, layout: RowLayout) -> Tensor:
        """[tokens / cp, heads, head_dim] each; all blocks in one launch of bf16 or fp16."""
        blocks = layout.blocks(query.device)
        rotation = self._rotation(layout)
        if self.context_group.size() == 1:
            rotated, keys, values = rotate_and_gather(query, key, value, rotation, blocks, fused=self.fused)
        else:
            rotated, keys, values = rotate_and_gather(query, key, value, rotation, None, fused=self.fused)
            row = gather_row(torch.cat((keys, values), dim=1), self.context_group)
            keys, values = row.chunk(2, dim=1)
            keys, values = gather(keys, values, blocks, fused=self.fused)
        if self.kernel is None:
            self.kernel = self._make_kernel(query.shape[1], key.shape[1], key.shape[2])
        return self.kernel(rotated, keys, values, blocks)

    def _make_kernel(self, heads: int, kv_heads: int, head_dim: int) -> Kernel:
        options: dict[str, Any] = {"softmax_scale": self.softmax_scale, "window": self.window}
        if self.config.attention_kernel == "cudnn":
            return cudnn_kernel(heads=heads, kv_heads=kv_heads, head_dim=head_dim, **options)
        return flash_kernel(**options)


def gather_row(shard: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    """The whole row, in its own order, from each context-parallel rank's tokens; the gradient is reduce-scattered.

    [tokens / cp, ...] to [tokens, ...].
    """
    gathered = gather_from_sequence_parallel_region(shard, tensor_parallel_output_grad=True, group=group)
    chunks = gathered.chunk(2 * group.size())
    return torch.cat([chunks[at] for at in gathered_order(group.size())])


def attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    softmax_scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention block by block with torch's scaled dot products.

    query [sum of plan.query_tokens, heads, head_dim], key and value [sum of plan.key_tokens, kv_heads, head_dim];
    returns query's shape and dtype. Blocks that see nothing (padding) give zeros. With a `window`, a token sees only
    the last `window` of the tokens that it would see, itself included.
    """
    # One split and one cat: slicing each block would cost a gradient as long as the row for every block.
    queries = [_heads_first(part) for part in query.split(plan.query_tokens)]
    keys = [_heads_first(part) for part in key.split(plan.key_tokens)]
    values = [_heads_first(part) for part in value.split(plan.key_tokens)]
    outputs = [
        _attend(block, _joined(keys, seen), _joined(values, seen), softmax_scale, window)
        if seen
        else torch.zeros_like(block)
        for block, seen in zip(queries, plan.seen, strict=True)
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def _heads_first(segment: Tensor) -> Tensor:
    """[tokens, heads, head_dim] to [1, heads, tokens, head_dim], a view."""
    return segment.transpose(0, 1)[None]


def _joined(pieces: list[Tensor], seen: tuple[int, ...]) -> Tensor:
    return pieces[seen[0]] if len(seen) == 1 else torch.cat([pieces[at] for at in seen], dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float, window: int | None) -> Tensor:
    """Causal attention aligned at the end: query t sees the keys up to `len(key) - len(query) + t`."""
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if window is not None and window >= keys:
        window = None
    if queries == keys and window is None:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=softmax_scale, enable_gqa=grouped
        )
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if window is not None:
        mask = mask.triu(keys - queries - window + 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=grouped)
