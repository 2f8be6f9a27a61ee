"""The feed-forward's gate of Gemma, gelu(gate) * up with the tanh approximation; it keeps nothing but its input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class GatedGelu(torch.nn.Module):
    """Megatron-Core's place for it: `activation_func` of `MLPSubmodules`."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """[..., 2 * ffn] to [..., ffn]."""
        return _GatedGelu.apply(gate_and_up)


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        gate_grad, up_grad = result.chunk(2, dim=-1)
        torch.mul(F.gelu(gate, approximate="tanh"), grad, out=up_grad)
        gate_grad.copy_(torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"))
        return result
