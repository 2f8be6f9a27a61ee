"""silu(gate) * up and its gradient, one pass over memory each.

`megatron_dpop.models.gate` has the same in plain torch; roundings stand at the same places.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_dpop.kernels.launch import launch

BLOCK = 2048


@triton.jit
def _forward(gate_and_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    kind = out.dtype.element_ty
    gate = tl.load(gate_and_up + row * 2 * width + at, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_and_up + row * 2 * width + width + at, mask=inside, other=0).to(tl.float32)
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out + row * width + at, (silu * up).to(kind), mask=inside)


@triton.jit
def _backward(gate_and_up, grad, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    kind = out.dtype.element_ty
    gate = tl.load(gate_and_up + row * 2 * width + at, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_and_up + row * 2 * width + width + at, mask=inside, other=0).to(tl.float32)
    gradient = tl.load(grad + row * width + at, mask=inside, other=0).to(tl.float32)
    sigmoid = 1 / (1 + tl.exp(-gate))
    silu = (gate * sigmoid).to(kind).to(tl.float32)
    inner = (gradient * up).to(kind).to(tl.float32)
    gate_gradient = inner * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(out + row * 2 * width + at, gate_gradient.to(kind), mask=inside)
    tl.store(out + row * 2 * width + width + at, (silu * gradient).to(kind), mask=inside)


def gate_forward(gate_and_up: Tensor) -> Tensor:
    """[..., 2 * ffn] to [..., ffn]."""
    gate_and_up = gate_and_up.contiguous()
    width = gate_and_up.shape[-1] // 2
    out = torch.empty((*gate_and_up.shape[:-1], width), dtype=gate_and_up.dtype, device=gate_and_up.device)
    launch(_forward, _grid(out), gate_and_up, out, width, BLOCK=BLOCK)
    return out


def gate_backward(gate_and_up: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the input, [..., 2 * ffn], from the output's, [..., ffn]."""
    gate_and_up, grad = gate_and_up.contiguous(), grad.contiguous()
    out = torch.empty_like(gate_and_up)
    launch(_backward, _grid(grad), gate_and_up, grad, out, grad.shape[-1], BLOCK=BLOCK)
    return out


def _grid(narrow: Tensor) -> tuple[int, int]:
    return narrow.numel() // max(1, narrow.shape[-1]), triton.cdiv(narrow.shape[-1], BLOCK)
