"""The feed-forward's gate, silu(gate) * up, that keeps nothing but its input.

Megatron-Core's own, unfused, keeps both factors too and adds an offset of zero to one of them: two more tensors as wide
as the feed-forward. The arithmetic and its rounding are the same; the price is silu once more in the backward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class GatedSilu(torch.nn.Module):
    """Megatron-Core's place for it: `activation_func` of `MLPSubmodules`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fused = config.fused_kernels

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """[..., 2 * ffn] to [..., ffn]."""
        return (_FusedGatedSilu if self.fused and gate_and_up.is_cuda else _GatedSilu).apply(gate_and_up)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        gate_grad, up_grad = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        return result


class _FusedGatedSilu(torch.autograd.Function):
    """The same in one kernel each way, on GPUs."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        from megatron_dpop.kernels.gate import gate_forward

        ctx.save_for_backward(gate_and_up)
        return gate_forward(gate_and_up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from megatron_dpop.kernels.gate import gate_backward

        (gate_and_up,) = ctx.saved_tensors
        return gate_backward(gate_and_up, grad)
