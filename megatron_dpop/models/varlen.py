"""Attention over trees on GPUs: one launch for all blocks, as sequences of different lengths.

Each query block is a sequence of its own whose keys are gathered: a branch's keys are its trunk's and its own. The
kernels align their causal mask at the end of queries and keys, which is what a branch needs. The gathered copies cost
(trunk tokens x branches) key/value rows, little beside the activations of a layer. Padding, whose results nobody reads,
is short blocks that see as many keys as they have queries: no slice before the kernel, and no padding after it.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpop_base.errors import UserError
from megatron_dpop.rows.context import AttentionPlan
from megatron_dpop.runtime.devices import to_device

PADDING_BLOCK = 128  # tokens
FALLBACK = "NVTE_UNFUSED_ATTN"  # whether Transformer Engine may form whole matrices of scores


@dataclass(frozen=True)
class VarlenBlocks:
    """An `AttentionPlan` in the kernels' terms."""

    key_index: NDArray[np.int32]  # [gathered keys], index into the row
    copy_offsets: NDArray[np.int32]  # [row's tokens + 1], into `copies`
    copies: NDArray[np.int32]  # [gathered keys], the places in `key_index` that name each token
    query_offsets: NDArray[np.int32]  # [blocks + 1]
    key_offsets: NDArray[np.int32]  # [blocks + 1], into the gathered keys
    longest_query: int
    longest_key: int
    attended: int  # queries that see something: those of padding stand last


@dataclass(frozen=True)
class DeviceBlocks:
    """The same on the device."""

    key_index: Tensor
    copy_offsets: Tensor
    copies: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int


@lru_cache(maxsize=4)
def varlen_blocks(plan: AttentionPlan) -> VarlenBlocks:
    attending = [at for at, seen in enumerate(plan.seen) if seen]
    assert attending == list(range(len(attending))), "padding must stand after every block"
    query_tokens = [plan.query_tokens[at] for at in attending]
    key_tokens = plan.seen_tokens()[: len(attending)]
    starts = np.cumsum((0, *plan.key_tokens))
    index = [np.arange(starts[piece], starts[piece + 1]) for at in attending for piece in plan.seen[at]]
    attended = sum(query_tokens)
    tokens = int(starts[-1])
    for size in _pieces(sum(plan.query_tokens) - attended, min(PADDING_BLOCK, tokens)):
        query_tokens.append(size)
        key_tokens.append(size)
        index.append(np.arange(tokens - size, tokens))
    key_index = np.concatenate(index).astype(np.int32)
    return VarlenBlocks(
        key_index=key_index,
        copy_offsets=np.cumsum((0, *np.bincount(key_index, minlength=tokens)), dtype=np.int32),
        copies=np.argsort(key_index, kind="stable").astype(np.int32),
        query_offsets=np.cumsum((0, *query_tokens), dtype=np.int32),
        key_offsets=np.cumsum((0, *key_tokens), dtype=np.int32),
        longest_query=max(query_tokens),
        longest_key=max(key_tokens),
        attended=attended,
    )


def _pieces(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def blocks_on(plan: AttentionPlan, device: torch.device) -> DeviceBlocks:
    """Once a row: every layer uses the same."""
    blocks = varlen_blocks(plan)

    def moved(array: NDArray[np.int32]) -> Tensor:
        return to_device(array, device)

    return DeviceBlocks(
        key_index=moved(blocks.key_index),
        copy_offsets=moved(blocks.copy_offsets),
        copies=moved(blocks.copies),
        query_offsets=moved(blocks.query_offsets),
        key_offsets=moved(blocks.key_offsets),
        longest_query=blocks.longest_query,
        longest_key=blocks.longest_key,
    )


# query [tokens, heads, head_dim], gathered keys and values [gathered, kv_heads, head_dim]; returns query's shape
Kernel = Callable[[Tensor, Tensor, Tensor, DeviceBlocks], Tensor]


def flash_kernel(*, softmax_scale: float, window: int | None) -> Kernel:
    """FlashAttention's, of torch, for bf16 and fp16."""
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn

    def attend(query: Tensor, keys: Tensor, values: Tensor, blocks: DeviceBlocks) -> Tensor:
        mixed = varlen_attn(
            query,
            keys,
            values,
            blocks.query_offsets,
            blocks.key_offsets,
            blocks.longest_query,
            blocks.longest_key,
            scale=softmax_scale,
            window_size=(-1 if window is None else window - 1, 0),
            **_shared_heads(varlen_attn, query, keys),
        )
        assert isinstance(mixed, Tensor)
        return mixed

    return attend


def _shared_heads(varlen_attn: Any, query: Tensor, key: Tensor) -> dict[str, bool]:
    """The word that lets query heads share a key head; torch before 2.12 lets them unasked, and has no such word."""
    known = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return {"enable_gqa": query.shape[1] != key.shape[1]} if known else {}


def cudnn_kernel(*, heads: int, kv_heads: int, head_dim: int, softmax_scale: float, window: int | None) -> Kernel:
    """cuDNN's, through Transformer Engine. The kernel raises UserError where cuDNN does not take such attention."""
    from transformer_engine.pytorch import DotProductAttention

    attention = DotProductAttention(
        heads,
        head_dim,
        num_gqa_groups=kv_heads,
        attention_dropout=0.0,
        qkv_format="thd",
        attn_mask_type="padding_causal_bottom_right",
        window_size=(-1 if window is None else window - 1, 0),
        softmax_scale=softmax_scale,
    )

    def attend(query: Tensor, keys: Tensor, values: Tensor, blocks: DeviceBlocks) -> Tensor:
        with _no_fallback(f"{heads} heads of {head_dim} entries with {kv_heads} key heads"):
            mixed = attention(
                query,
                keys,
                values,
                cu_seqlens_q=blocks.query_offsets,
                cu_seqlens_kv=blocks.key_offsets,
                max_seqlen_q=blocks.longest_query,
                max_seqlen_kv=blocks.longest_key,
            )
        return mixed.view(query.shape)

    return attend


@contextmanager
def _no_fallback(shape: str) -> Iterator[None]:
    """Within it, Transformer Engine refuses attention that it would do without cuDNN: 80 times as slow on an H100.

    Megatron-Core wants the variable unset whenever it builds a model.
    """
    before = os.environ.get(FALLBACK)
    os.environ[FALLBACK] = "0"
    try:
        yield
    except ValueError as error:
        if "attention backend" not in str(error):
            raise
        raise UserError(
            f"kernels.attention: cudnn: cuDNN does not take {shape} in the blocks of a tree; set kernels.attention: "
            "flash. tools/gpu_check.py says whether torch and Transformer Engine load one cuDNN; NVTE_DEBUG=1 "
            "NVTE_DEBUG_LEVEL=2 prints Transformer Engine's reasons"
        ) from error
    finally:
        if before is None:
            del os.environ[FALLBACK]
        else:
            os.environ[FALLBACK] = before
