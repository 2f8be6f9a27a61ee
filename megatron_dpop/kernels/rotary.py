"""Rotates queries and keys and gathers the keys and values that blocks see: one pass over memory each way.

A gathered row is a copy of a token's key and value. Backward, each token sums the gradients of its copies, in fp32 and
in their order: the same bits every time, where adding by index would leave the order to the device.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_dpop.kernels.launch import launch

HEAD_BLOCK = 16  # heads that a program holds at once


@dataclass(frozen=True)
class Angles:
    """Each token's angles, contiguous fp32 [tokens, ..., rotary_dim / 2]; whether even and odd entries turn."""

    cosines: Tensor
    sines: Tensor
    interleaved: bool = False


@dataclass(frozen=True)
class Copies:
    """Which token each gathered row copies, and which rows are a token's copies. All int32."""

    source: Tensor  # [gathered], a token
    offsets: Tensor  # [tokens + 1], into `rows`
    rows: Tensor  # [gathered], grouped by token


@triton.jit
def _turned(first, second, cosine, sine, SIGN: tl.constexpr):
    return first * cosine - SIGN * second * sine, second * cosine + SIGN * first * sine


@triton.jit
def _pairs(column, HALF: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Where a head's pairs stand: the first `TURNED` are turned, the others are any two entries of the rest."""
    if INTERLEAVED:
        return 2 * column, 2 * column + 1
    return tl.where(column < TURNED, column, column + TURNED), tl.where(column < TURNED, column + TURNED, column + HALF)


@triton.jit
def _copy_heads(
    source,
    head_stride,
    target,
    cosines,
    sines,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    ROTATES: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """One token's heads, turned by its angles where they are to be."""
    column = tl.arange(0, HALF_BLOCK)[None, :]
    one, other = _pairs(column, HALF, TURNED, INTERLEAVED)
    for start in range(0, HEADS, HEAD_BLOCK):
        head = start + tl.arange(0, HEAD_BLOCK)[:, None]
        inside = (head < HEADS) & (column < HALF)
        first = tl.load(source + head * head_stride + one, mask=inside, other=0).to(tl.float32)
        second = tl.load(source + head * head_stride + other, mask=inside, other=0).to(tl.float32)
        if ROTATES:
            cosine = tl.load(cosines + column, mask=column < TURNED, other=1)
            sine = tl.load(sines + column, mask=column < TURNED, other=0)
            first, second = _turned(first, second, cosine, sine, 1)
        kind = target.dtype.element_ty
        tl.store(target + head * 2 * HALF + one, first.to(kind), mask=inside)
        tl.store(target + head * 2 * HALF + other, second.to(kind), mask=inside)


@triton.jit
def _forward(
    query,
    key,
    value,
    cosines,
    sines,
    source,
    out_query,
    out_key,
    out_value,
    queries,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    out_token,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    ROTATES: tl.constexpr,
    GATHERS: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if row < queries:
        _copy_heads(
            query + row * query_token,
            query_head,
            out_query + row * HEADS * 2 * HALF,
            cosines + row * TURNED,
            sines + row * TURNED,
            HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            ROTATES,
            TURNED,
            INTERLEAVED,
        )
    else:
        row -= queries
        token = row
        if GATHERS:
            token = tl.load(source + row).to(tl.int64)
        _copy_heads(
            key + token * key_token,
            key_head,
            out_key + row * out_token,
            cosines + token * TURNED,
            sines + token * TURNED,
            KV_HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            ROTATES,
            TURNED,
            INTERLEAVED,
        )
        _copy_heads(
            value + token * value_token,
            value_head,
            out_value + row * out_token,
            cosines,
            sines,
            KV_HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            False,
            TURNED,
            INTERLEAVED,
        )


@triton.jit
def _sum_heads(
    grad,
    grad_token,
    rows,
    begin,
    end,
    target,
    cosines,
    sines,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    ROTATES: tl.constexpr,
    GATHERS: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """The sum of one token's copies, turned back."""
    column = tl.arange(0, HALF_BLOCK)[None, :]
    one, other = _pairs(column, HALF, TURNED, INTERLEAVED)
    for start in range(0, HEADS, HEAD_BLOCK):
        head = start + tl.arange(0, HEAD_BLOCK)[:, None]
        inside = (head < HEADS) & (column < HALF)
        place = head * 2 * HALF
        first = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
        second = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
        for at in range(begin, end):
            row = at
            if GATHERS:
                row = tl.load(rows + at).to(tl.int64)
            first += tl.load(grad + row * grad_token + place + one, mask=inside, other=0).to(tl.float32)
            second += tl.load(grad + row * grad_token + place + other, mask=inside, other=0).to(tl.float32)
        if ROTATES:
            cosine = tl.load(cosines + column, mask=column < TURNED, other=1)
            sine = tl.load(sines + column, mask=column < TURNED, other=0)
            first, second = _turned(first, second, cosine, sine, -1)
        kind = target.dtype.element_ty
        tl.store(target + place + one, first.to(kind), mask=inside)
        tl.store(target + place + other, second.to(kind), mask=inside)


@triton.jit
def _backward(
    grad_query,
    grad_key,
    grad_value,
    cosines,
    sines,
    offsets,
    rows,
    out_query,
    out_key,
    out_value,
    queries,
    grad_token,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    ROTATES: tl.constexpr,
    GATHERS: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    if token < queries:
        out = out_query + token * HEADS * 2 * HALF
        angle = token * TURNED
        _sum_heads(
            grad_query,
            HEADS * 2 * HALF,
            rows,
            token,
            token + 1,
            out,
            cosines + angle,
            sines + angle,
            HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            ROTATES,
            False,
            TURNED,
            INTERLEAVED,
        )
    else:
        token -= queries
        begin = token
        end = token + 1
        if GATHERS:
            begin = tl.load(offsets + token).to(tl.int64)
            end = tl.load(offsets + token + 1).to(tl.int64)
        place = token * KV_HEADS * 2 * HALF
        angle = token * TURNED
        _sum_heads(
            grad_key,
            grad_token,
            rows,
            begin,
            end,
            out_key + place,
            cosines + angle,
            sines + angle,
            KV_HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            ROTATES,
            GATHERS,
            TURNED,
            INTERLEAVED,
        )
        _sum_heads(
            grad_value,
            grad_token,
            rows,
            begin,
            end,
            out_value + place,
            cosines,
            sines,
            KV_HEADS,
            HALF,
            HALF_BLOCK,
            HEAD_BLOCK,
            False,
            GATHERS,
            TURNED,
            INTERLEAVED,
        )


def gather_forward(
    query: Tensor | None, key: Tensor, value: Tensor, angles: Angles | None, copies: Copies | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Rotated queries [tokens, heads, head_dim], and of each gathered row its rotated key and its value.

    Inputs are [tokens, heads, head_dim] with any strides but the last. Without `angles` nothing is rotated; without
    `copies` each token is its own row. Keys and values are the halves of one tensor [gathered, 2 * kv_heads, head_dim].
    """
    tokens, kv_heads, head_dim = key.shape
    rows = tokens if copies is None else len(copies.source)
    heads, queries = (0, 0) if query is None else (query.shape[1], len(query))
    for tensor in (key, value) if query is None else (query, key, value):
        assert tensor.stride(-1) == 1, "a head's entries must stand side by side"
    both = torch.empty(rows, 2 * kv_heads, head_dim, dtype=key.dtype, device=key.device)
    keys, values = both[:, :kv_heads], both[:, kv_heads:]
    out = None if query is None else torch.empty(queries, heads, head_dim, dtype=query.dtype, device=key.device)
    asked = key if query is None else query  # of a pointer that is not read
    launch(
        _forward,
        (queries + rows,),
        asked,
        key,
        value,
        key if angles is None else angles.cosines,
        key if angles is None else angles.sines,
        key if copies is None else copies.source,
        keys if out is None else out,
        keys,
        values,
        queries,
        *asked.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        both.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        **_shape(head_dim, angles, copies),
    )
    return out, keys, values


def gather_backward(
    grad_query: Tensor | None,
    grad_keys: Tensor,
    grad_values: Tensor,
    tokens: int,
    angles: Angles | None,
    copies: Copies | None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous [tokens, heads, head_dim], from those of the three results."""
    _, kv_heads, head_dim = grad_keys.shape
    grad_keys, grad_values = _rows_alike(grad_keys, grad_values)
    grad_query = None if grad_query is None else grad_query.contiguous()
    heads, queries = (0, 0) if grad_query is None else (grad_query.shape[1], len(grad_query))
    key, value = (
        torch.empty(tokens, kv_heads, head_dim, dtype=grad_keys.dtype, device=grad_keys.device) for _ in range(2)
    )
    query = None if grad_query is None else torch.empty_like(grad_query)
    launch(
        _backward,
        (queries + tokens,),
        grad_keys if grad_query is None else grad_query,
        grad_keys,
        grad_values,
        grad_keys if angles is None else angles.cosines,
        grad_keys if angles is None else angles.sines,
        grad_keys if copies is None else copies.offsets,
        grad_keys if copies is None else copies.rows,
        key if query is None else query,
        key,
        value,
        queries,
        grad_keys.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        **_shape(head_dim, angles, copies),
    )
    return query, key, value


def _rows_alike(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Both with heads side by side and one stride from row to row."""
    side_by_side = keys.shape[-1], 1
    if keys.stride()[1:] == side_by_side and values.stride() == keys.stride():
        return keys, values
    return keys.contiguous(), values.contiguous()


def _shape(head_dim: int, angles: Angles | None, copies: Copies | None) -> dict[str, int | bool]:
    return {
        "HALF": head_dim // 2,
        "HALF_BLOCK": triton.next_power_of_2(head_dim // 2),
        "HEAD_BLOCK": HEAD_BLOCK,
        "ROTATES": angles is not None,
        "GATHERS": copies is not None,
        "TURNED": head_dim // 2 if angles is None else angles.cosines.shape[-1],
        "INTERLEAVED": angles is not None and angles.interleaved,
    }
