"""Tree attention against attention over whole rows with a mask, and against every completion by itself."""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.made_up_pairs import KINDS, MadeUpPairs
from benchmarks.report import Report, markdown
from benchmarks.subcommand import subcommand
from megatron_dpop.rows.context import AttentionPlan, attention_plan
from megatron_dpop.rows.row import build_row
from megatron_dpop.rows.shapes import example_shapes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Measurement:
    way: str
    dtype: str
    tokens: int  # that the way looks at
    attended: int  # (query, key) pairs
    seconds: float  # forward and backward, median


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py attention --pairs metamath-like --heads 64 --kv-heads 8 --head-dim 128"
    parser = subcommand(subparsers, __name__, "attention over trees against attention over rows", example=example)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", choices=KINDS, default="metamath-like")
    parser.add_argument("--pairs-a-row", type=int, default=8)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)


def run(options: argparse.Namespace) -> Report:
    found = [measurement for dtype in DTYPES for measurement in measure(options, dtype)]
    base = {m.dtype: m.seconds for m in found if m.way == "trees (ours)"}
    rows = [
        [
            f"{m.way}, {m.dtype}",
            str(m.tokens),
            str(m.attended),
            f"{m.seconds * 1e3:.1f}",
            f"{m.seconds / base[m.dtype]:.2f}",
        ]
        for m in found
    ]
    header = ["", "tokens", "attended pairs", "ms, forward and backward", "ratio to trees"]
    return Report(markdown(header, rows), [asdict(m) for m in found])


def measure(options: argparse.Namespace, dtype: str) -> list[Measurement]:
    pairs = MadeUpPairs(KINDS[options.pairs], options.pairs_a_row, vocab_size=1000)
    examples = [pairs[index] for index in range(len(pairs))]
    found = []
    for way, shared, attend in (
        ("trees (ours)", True, _trees),
        ("completions by themselves", False, _trees),
        ("trees, one mask over the row", True, _masked),
    ):
        lengths = pairs.lengths()
        shapes = example_shapes(
            lengths.prompt_tokens, lengths.completion_tokens, lengths.common_prefix_tokens, share_prefix=shared
        )
        tokens = int(shapes.row_tokens.sum())
        row = build_row(examples, range(len(examples)), row_tokens=tokens, share_prefix=shared)
        plan = attention_plan(row.trees, tokens)
        seconds = _seconds(options, DTYPES[dtype], tokens, attend(plan, options.device))
        attended = tokens * tokens if attend is _masked else int(shapes.attended.sum())
        found.append(Measurement(way, dtype, tokens, attended, seconds))
    return found


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _trees(plan: AttentionPlan, device: str) -> Attend:
    # Nothing of Megatron-Core may be imported before a trainer has chosen its device.
    from megatron_dpop.models.attention import attend_blocks
    from megatron_dpop.models.gathered import gather
    from megatron_dpop.models.varlen import blocks_on, flash_kernel

    def in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_blocks(query, key, value, plan, softmax_scale=query.shape[-1] ** -0.5)

    def in_one_launch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.dtype is torch.float32:
            return in_blocks(query, key, value)
        kernel = flash_kernel(softmax_scale=query.shape[-1] ** -0.5, window=None)
        return kernel(query, *gather(key, value, blocks, fused=True), blocks)

    if device != "cuda":
        return in_blocks
    blocks = blocks_on(plan, torch.device(device))
    return in_one_launch


def _masked(plan: AttentionPlan, device: str) -> Attend:
    """What a trainer without tree attention would do: every query against every key of the row."""
    tokens = sum(plan.query_tokens)
    starts = np.cumsum((0, *plan.key_tokens))
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    at = 0
    for block, pieces in zip(plan.query_tokens, plan.seen, strict=True):
        keys = torch.cat([torch.arange(starts[piece], starts[piece + 1]) for piece in pieces])
        mask[at : at + block, keys] = torch.ones(block, len(keys), dtype=torch.bool).tril(len(keys) - block)
        at += block
    mask = mask.to(device)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return mixed[0].transpose(0, 1)

    return attend


def _seconds(options: argparse.Namespace, dtype: torch.dtype, tokens: int, attend: Attend) -> float:
    generator = torch.Generator().manual_seed(0)

    def made(heads: int) -> Tensor:
        tensor = torch.randn(tokens, heads, options.head_dim, generator=generator)
        return tensor.to(options.device, dtype).requires_grad_()

    query, key, value = made(options.heads), made(options.kv_heads), made(options.kv_heads)
    times = []
    for _ in range(options.repeats + 1):
        query.grad = key.grad = value.grad = None
        started = time.perf_counter()
        attend(query, key, value).sum().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
