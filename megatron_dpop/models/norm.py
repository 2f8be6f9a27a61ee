"""RMSNorm for the layer spec without Transformer Engine."""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension, or * (1 + weight), computed in fp32 and rounded once.

    torch's own, on a CPU, is a chain of seven operations that keeps two fp32 tensors as large as the input; this keeps
    the input and one number a token. Under sequence parallelism each tensor-parallel rank normalises its own tokens, so
    the weight's gradient must be summed over the ranks: Megatron does that for parameters marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.offset = float(config.layernorm_zero_centered_gamma)
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, states: Tensor) -> Tensor:
        """[..., hidden_size] to the same shape and dtype."""
        return _RMSNorm.apply(states, self.weight, self.eps, self.offset)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(states.shape[-1]).add_(eps).rsqrt_()  # fp32 [..., 1]
        ctx.save_for_backward(states, weight, scale)
        ctx.offset = offset
        return torch.mul(states * scale, _factor(weight, offset), out=torch.empty_like(states))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        states, weight, scale = ctx.saved_tensors
        size = states.shape[-1]
        normalised = states * scale
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * normalised).reshape(-1, size).sum(0).to(weight.dtype)
        scaled = grad * _factor(weight.float(), ctx.offset)
        along = torch.linalg.vecdot(scaled, normalised)[..., None].div_(size)
        states_grad = torch.mul(scaled.addcmul_(normalised, along, value=-1), scale, out=torch.empty_like(states))
        return states_grad, weight_grad, None, None


def _factor(weight: Tensor, offset: float) -> Tensor:
    return weight.float() + offset if offset else weight
