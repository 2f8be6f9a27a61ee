"""Kernels against fp64 on the same device: attention over trees, gate, rotation, log-probabilities, segment sums."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gpu_checks.finding import CheckResult, attempted, within
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs

Computation = Callable[[torch.dtype, bool], Sequence[Tensor]]  # (dtype, the device's kernels) -> results and gradients

WRONG = "a kernel that computes something else: set kernels.fused: false and kernels.attention: flash, and report it"
# Heads, key/value heads, head size, window, tokens of padding.
ATTENTION = ((64, 8, 128, None, 37), (32, 32, 128, None, 0), (28, 4, 128, 64, 64), (9, 3, 64, None, 5))


def check(device: torch.device) -> Iterator[CheckResult]:
    torch.manual_seed(0)
    gpu = device.type == "cuda"
    kernels = ("flash", "cudnn") if gpu else ("blocks",)
    for heads, kv_heads, head_dim, window, padding in ATTENTION if gpu else ATTENTION[-1:]:
        for kernel in kernels:
            what = f"{kernel} attention, heads {heads}/{kv_heads} of {head_dim}, window {window}, padding {padding}"
            run = _attention(device, heads, kv_heads, head_dim, window, padding, kernel)
            yield from attempted("exact", what, partial(_compared, what, run, 2e-2))
    yield from attempted("exact", "gate", lambda: _compared("gate", _gate(device), 1e-2))
    yield from attempted(
        "exact", "log-probabilities", lambda: _compared("log-probabilities", _logprobs(device), 1e-5, gradients=1e-2)
    )
    yield from attempted("exact", "segment sums", lambda: _segments(device))


def _compared(what: str, run: Computation, limit: float, *, gradients: float | None = None) -> Iterator[CheckResult]:
    found, again = run(torch.bfloat16, True), run(torch.bfloat16, True)
    wanted = run(torch.float64, False)
    errors = [_error(one, other) for one, other in zip(found, wanted, strict=True)]
    yield within("exact", what, errors[0], None, limit, unit="", means=WRONG)
    worst = max(errors[1:])
    yield within("exact", f"{what}: gradients", worst, None, gradients or limit, unit="", means=WRONG)
    same = all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    # FlashAttention adds its gradients of queries in an order of the moment.
    yield CheckResult("exact", f"{what}: same bits again", "yes" if same else "no", "", "-")


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def _leaves(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Draws bf16 numbers, whatever the dtype."""
    return [tensor.to(torch.bfloat16).to(dtype).requires_grad_() for tensor in tensors]


def _attention(
    device: torch.device, heads: int, kv_heads: int, head_dim: int, window: int | None, padding: int, kernel: str
) -> Computation:
    from megatron_dpop.models.attention import attend_blocks
    from megatron_dpop.models.gathered import rotate_and_gather
    from megatron_dpop.models.layout import Rotation
    from megatron_dpop.models.rotary import rotate
    from megatron_dpop.models.varlen import blocks_on, cudnn_kernel, flash_kernel
    from megatron_dpop.rows.context import attention_plan

    draw = np.random.default_rng(0)
    longest, count = (400, 12) if device.type == "cuda" else (40, 4)
    trees = [tuple(int(draw.integers(1, longest)) for _ in range(3)) for _ in range(count)]
    total = sum(map(sum, trees)) + padding
    plan = attention_plan(trees, total)
    shapes = (heads, kv_heads, kv_heads, heads)
    *inputs, upstream = (torch.randn(total, count, head_dim, device=device) for count in shapes)
    angles = torch.randn(total, 1, head_dim // 2, device=device)
    rotation = Rotation(angles.cos(), angles.sin())
    scale = head_dim**-0.5
    upstream[total - padding :] = 0  # nobody reads padding's results

    def run(dtype: torch.dtype, own: bool) -> list[Tensor]:
        query, key, value = leaves = _leaves(inputs, dtype)
        if own and kernel != "blocks":
            blocks = blocks_on(plan, device)
            made = (
                flash_kernel(softmax_scale=scale, window=window)
                if kernel == "flash"
                else cudnn_kernel(heads=heads, kv_heads=kv_heads, head_dim=head_dim, softmax_scale=scale, window=window)
            )
            mixed = made(*rotate_and_gather(query, key, value, rotation, blocks, fused=True), blocks)
        else:
            turned = (rotate(query, rotation, dtype), rotate(key, rotation, dtype), value)
            mixed = attend_blocks(*turned, plan, softmax_scale=scale, window=window)
        mixed = mixed[: total - padding]
        mixed.backward(upstream[: total - padding].to(torch.bfloat16).to(dtype))
        return [mixed.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return run


def _gate(device: torch.device) -> Computation:
    from megatron_dpop.models.gate import _FusedGatedSilu, _GatedSilu

    given, upstream = torch.randn(300, 1, 5000, device=device), torch.randn(300, 1, 2500, device=device)

    def run(dtype: torch.dtype, own: bool) -> list[Tensor]:
        (leaf,) = _leaves([given], dtype)
        result = (_FusedGatedSilu if own and leaf.is_cuda else _GatedSilu).apply(leaf)
        result.backward(upstream.to(torch.bfloat16).to(dtype))
        assert leaf.grad is not None
        return [result.detach(), leaf.grad]

    return run


def _logprobs(device: torch.device) -> Computation:
    scores, hidden, vocabulary = (5000, 2048, 32000) if device.type == "cuda" else (70, 64, 1000)
    states = torch.randn(scores, hidden, device=device)
    weight = 0.05 * torch.randn(vocabulary + 48, hidden, device=device)
    targets = torch.randint(0, vocabulary, (scores,), device=device)
    upstream = torch.randn(scores, device=device)

    def run(dtype: torch.dtype, own: bool) -> list[Tensor]:
        leaves = _leaves([states, weight], dtype)
        if own:
            logps = vocab_parallel_linear_logprobs(
                leaves[0], leaves[1], targets, vocab_size=vocabulary, tp_group=None, fused=device.type == "cuda"
            )
        else:
            logits = leaves[0] @ leaves[1][:vocabulary].t()
            logps = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        logps.backward(upstream.to(logps.dtype))
        return [logps.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return run


def _segments(device: torch.device) -> Iterator[CheckResult]:
    lengths = torch.tensor([3, 0, 5, 2], device=device)
    values = torch.randn(10, device=device, requires_grad=True)
    sums = torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True)
    wanted = torch.stack([part.sum() for part in values.split(lengths.tolist())])
    sums.sum().backward()
    assert values.grad is not None
    error = _error(sums.detach(), wanted.detach()) + _error(values.grad, torch.ones_like(values))
    yield within("exact", "segment sums", error, None, 1e-6, unit="", means=WRONG)
