"""Twins of Transformer Engine's kernels for products, norms and the optimizer, summed in fp32."""

from typing import Any

import torch
from te_casts import is_quantized, operand, quantize, torch_dtype
from torch import Tensor


def generic_gemm(
    a: Any,
    transpose_a: bool,
    b: Any,
    transpose_b: bool,
    out: Tensor | None,
    quantizer: Any,
    out_dtype: Any,
    bias: Tensor | None,
    bias_dtype: Any,
    gelu: bool,
    gelu_input: Any,
    grad: bool,
    workspace: Any,
    workspace_bytes: int,
    accumulate: bool,
    use_split_accumulator: bool,
    *,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> tuple[Tensor, Tensor | None, None, Any]:
    """op(b) @ op(a), as cuBLAS multiplies: operands of one kind, and FP8's in the copy that the kernel reads."""
    assert not gelu
    assert comm_overlap is None
    assert quantizer is None
    assert is_quantized(a) == is_quantized(b), (type(a), type(b))
    if not is_quantized(a):
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
    left, right = operand(b, rowwise=not transpose_b), operand(a, rowwise=transpose_a)
    if is_quantized(a):
        assert all(size % 16 == 0 for size in (*left.shape, *right.shape)), (left.shape, right.shape)
    result = alpha * ((left.t() if transpose_b else left) @ (right.t() if transpose_a else right))
    bias_gradient = None
    if bias is not None and grad:
        bias_gradient = left.sum(0).to(bias.dtype)
    elif bias is not None:
        result = result + bias.float()
    if not transpose_b:
        result = result.reshape(*b.shape[:-1], result.shape[-1])
    if out is None:
        return (
            result.to(torch_dtype(out_dtype) if out_dtype is not None else a.dtype),
            bias_gradient,
            None,
            extra_output,
        )
    if accumulate:
        out += result.to(out.dtype).view(out.shape)
    else:
        out.copy_(result.view(out.shape))
    return out, bias_gradient, None, extra_output


def rmsnorm_fwd(
    x: Tensor, weight: Tensor, epsilon: float, out: Any, quantizer: Any, dtype: Any, margin: int, zero_centered: bool
) -> tuple[Any, None, Tensor]:
    assert not zero_centered
    scale = torch.rsqrt(x.float().square().mean(-1) + epsilon)
    y = (x.float() * scale[:, None] * weight.float()).to(torch_dtype(dtype))
    return (y if quantizer is None else quantize(y, quantizer, out)), None, scale


def rmsnorm_bwd(
    gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor, margin: int, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    normed = x.float() * scale[:, None]
    inner = gradient.float() * weight.float()
    dx = scale[:, None] * (inner - normed * (inner * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (gradient.float() * normed).sum(0).to(weight.dtype)


def multi_tensor_adam(
    chunk: int,
    skip: Tensor,
    lists: list[list[Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    assert decoupled
    assert bias_correction
    gradients, parameters, firsts, seconds, *masters = lists
    for at, (gradient, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        weight = (masters[0][at] if masters else parameter).float()
        first = firsts[at].float().lerp(gradient.float(), 1 - beta1)
        second = seconds[at].float().lerp(gradient.float().square(), 1 - beta2)
        firsts[at].copy_(first)
        seconds[at].copy_(second)
        update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + epsilon)
        weight = weight - lr * (update + weight_decay * weight)
        parameter.copy_(weight)
        if masters:
            masters[0][at].copy_(weight)


def multi_tensor_l2norm(
    chunk: int, skip: Tensor, lists: list[list[Tensor]], per_tensor: bool = False
) -> tuple[Tensor, Tensor | None]:
    norms = torch.stack([tensor.float().norm() for tensor in lists[0]])
    return norms.norm().reshape(1), norms if per_tensor else None


def multi_tensor_scale(chunk: int, skip: Tensor, lists: list[list[Tensor]], scale: float | Tensor) -> None:
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


TWINS = {
    function.__name__: function
    for function in (generic_gemm, rmsnorm_fwd, rmsnorm_bwd, multi_tensor_adam, multi_tensor_l2norm, multi_tensor_scale)
} | {"multi_tensor_scale_tensor": multi_tensor_scale, "get_cublasLt_version": lambda: 130000}
