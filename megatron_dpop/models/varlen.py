"""Attention over trees on GPUs: FlashAttention's kernel for sequences of different lengths, all blocks in one launch.

Each query block is a sequence of its own whose keys are gathered: a branch's keys are its trunk's and its own. The
kernel aligns its causal mask at the end of queries and keys, which is what a branch needs. The gathered copies cost
(trunk tokens x branches) key/value rows, little beside the activations of a layer.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.rows.context import AttentionPlan


@dataclass(frozen=True)
class VarlenBlocks:
    """An `AttentionPlan` in the kernel's terms; padding, which stands last, is left out."""

    queries: int  # tokens
    key_index: NDArray[np.int64]  # [gathered keys], index into the row
    query_offsets: NDArray[np.int32]  # [blocks + 1]
    key_offsets: NDArray[np.int32]  # [blocks + 1], into the gathered keys
    longest_query: int
    longest_key: int


@lru_cache(maxsize=4)  # every layer of a row asks anew
def varlen_blocks(plan: AttentionPlan) -> VarlenBlocks:
    blocks = [at for at, seen in enumerate(plan.seen) if seen]
    assert blocks == list(range(len(blocks))), "padding must stand after every block"
    query_tokens = [plan.query_tokens[at] for at in blocks]
    key_tokens = plan.seen_tokens()[: len(blocks)]
    starts = np.cumsum((0, *plan.key_tokens))
    index = [np.arange(starts[piece], starts[piece + 1]) for at in blocks for piece in plan.seen[at]]
    return VarlenBlocks(
        queries=sum(query_tokens),
        key_index=np.concatenate(index) if index else np.empty(0, dtype=np.int64),
        query_offsets=np.cumsum((0, *query_tokens), dtype=np.int32),
        key_offsets=np.cumsum((0, *key_tokens), dtype=np.int32),
        longest_query=max(query_tokens, default=0),
        longest_key=max(key_tokens, default=0),
    )


def _shared_heads(varlen_attn: Any, query: Tensor, key: Tensor) -> dict[str, bool]:
    """The word that lets query heads share a key head; torch before 2.12 lets them unasked, and has no such word."""
    known = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return {"enable_gqa": query.shape[1] != key.shape[1]} if known else {}


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    softmax_scale: float,
    window: int | None = None,
) -> Tensor:
    """`megatron_dpop.models.attention.attend_blocks` in one kernel, for bf16 and fp16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    blocks = varlen_blocks(plan)
    if not blocks.queries:
        return torch.zeros_like(query)

    def on_device(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(query.device, non_blocking=True)

    place = on_device(blocks.key_index)
    mixed = varlen_attn(
        query[: blocks.queries],
        key.index_select(0, place),
        value.index_select(0, place),
        on_device(blocks.query_offsets),
        on_device(blocks.key_offsets),
        blocks.longest_query,
        blocks.longest_key,
        scale=softmax_scale,
        window_size=(-1 if window is None else window - 1, 0),
        **_shared_heads(varlen_attn, query, key),
    )
    assert isinstance(mixed, Tensor)
    return F.pad(mixed, (0, 0, 0, 0, 0, query.shape[0] - blocks.queries))
