"""Twins of Transformer Engine's casts to FP8, for three recipes, in the layouts that products read on Hopper."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
BLOCK = 128


def torch_dtype(dtype: Any) -> torch.dtype:
    from transformer_engine.pytorch.constants import TE_DType_To_Torch

    return TE_DType_To_Torch[dtype]


def is_quantized(x: Any) -> bool:
    from transformer_engine.pytorch.quantized_tensor import QuantizedTensorStorage

    return isinstance(x, QuantizedTensorStorage)


def operand(x: Any, *, rowwise: bool) -> Tensor:
    """What a product reads, fp32 and two-dimensional: of FP8 the data or their transposed copy, which must be there."""
    if not is_quantized(x):
        return x.detach().reshape(-1, x.shape[-1]).float()
    if hasattr(x, "_transpose"):
        held = x._data if rowwise else x._transpose
        assert held is not None, f"rowwise={rowwise}: not held"
        assert rowwise or not x._transpose_invalid
        values = held.view(torch_dtype(x._fp8_dtype)).float() * x._scale_inv
        return values.reshape(-1, values.shape[-1]) if rowwise else values.reshape(values.shape[0], -1).t()
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage

    assert (x._rowwise_data if rowwise else x._columnwise_data) is not None, f"rowwise={rowwise}: not held"
    other = "columnwise" if rowwise else "rowwise"
    alone = {**x.get_metadata(), f"{other}_data": None, f"{other}_scale_inv": None}
    values = Float8BlockwiseQTensorStorage(**alone).dequantize(dtype=torch.float32)
    return values.reshape(-1, values.shape[-1])


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, skip: Tensor | None = None) -> Any:
    """A quantized tensor as `quantizer` describes it, or `output` filled."""
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer

    assert skip is None or not skip.any()
    tensor = tensor.detach()
    if isinstance(quantizer, Float8BlockQuantizer):
        return _by_block(tensor, quantizer, output)
    return _by_tensor(tensor, quantizer, output)


def _by_tensor(tensor: Tensor, quantizer: Any, output: Any) -> Any:
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer, Float8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    kind = torch_dtype(quantizer.dtype)
    largest = tensor.abs().max().float()
    if isinstance(quantizer, Float8CurrentScalingQuantizer):
        if quantizer.with_amax_reduction:
            group = quantizer._canonicalized_amax_reduction_group()
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
        scale = _scale(largest, kind, quantizer)
    else:
        scale = quantizer.scale.reshape(())
        if quantizer.amax.numel():
            quantizer.amax.copy_(largest.reshape(quantizer.amax.shape))
    data = _cast(tensor, scale, kind)
    if output is not None:
        if output._data is not None:
            output._data.copy_(data.view(output._data.shape))
        if output._transpose is not None or quantizer.columnwise_usage:
            output._transpose = _columns_first(data)
            output._transpose_invalid = False
        output._scale_inv.copy_((1 / scale).view(output._scale_inv.shape))
        return output
    parts = {
        "data": data if quantizer.rowwise_usage else None,
        "data_transpose": _columns_first(data) if quantizer.columnwise_usage else None,
        "fp8_scale_inv": (1 / scale).reshape(1),
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
    }
    if quantizer.internal:
        return Float8TensorStorage(**parts, fake_dtype=tensor.dtype)
    return Float8Tensor(shape=tensor.shape, dtype=tensor.dtype, device=tensor.device, **parts)


def _by_block(tensor: Tensor, quantizer: Any, output: Any) -> Any:
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockwiseQTensor
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage

    matrix = tensor.float().reshape(-1, tensor.shape[-1])
    parts: dict[str, Any] = {}
    for name, rows, shape in (
        ("rowwise", matrix, tensor.shape),
        ("columnwise", matrix.t().contiguous(), quantizer.get_columnwise_shape(tensor.shape)),
    ):
        wanted = getattr(quantizer, f"{name}_usage")
        if output is not None:
            wanted = wanted or getattr(output, f"_{name}_data") is not None
        data, scale_inv = _blocks(rows, quantizer) if wanted else (None, None)
        if data is not None:
            expected = quantizer.get_scale_shape(tensor.shape, name == "columnwise")
            assert tuple(scale_inv.shape) == tuple(expected), (scale_inv.shape, expected)
        parts[f"{name}_data"] = None if data is None else data.reshape(shape)
        parts[f"{name}_scale_inv"] = scale_inv
    if output is not None:
        for name, value in parts.items():
            held = getattr(output, f"_{name}")
            if held is not None and value is not None:
                held.copy_(value.view(held.shape))
            elif value is not None:
                setattr(output, f"_{name}", value)
        return output
    parts |= {"fp8_dtype": quantizer.dtype, "quantizer": quantizer, "is_2D_scaled": quantizer.block_scaling_dim == 2}
    if quantizer.internal:
        return Float8BlockwiseQTensorStorage(**parts, fake_dtype=tensor.dtype)
    return Float8BlockwiseQTensor(shape=tensor.shape, dtype=tensor.dtype, device=tensor.device, **parts)


def _blocks(matrix: Tensor, quantizer: Any) -> tuple[Tensor, Tensor]:
    """FP8 data [rows, columns] and, padded to fours, inverse scales of blocks of 128 x 128, or of 1 x 128."""
    rows, columns = matrix.shape
    kind = torch_dtype(quantizer.dtype)
    if quantizer.block_scaling_dim == 2:
        scale = _scale(_largest_of_squares(matrix), kind, quantizer)
        inverse = 1 / scale
    else:
        padded = F.pad(matrix, (0, -columns % BLOCK))
        scale = _scale(padded.reshape(rows, -1, BLOCK).abs().amax(2), kind, quantizer)
        inverse = 1 / scale.t()
    spread = scale.repeat_interleave(BLOCK, 1)[:, :columns]
    if quantizer.block_scaling_dim == 2:
        spread = spread.repeat_interleave(BLOCK, 0)[:rows]
    return _cast(matrix, spread, kind), F.pad(inverse, (0, -inverse.shape[1] % 4))


def _largest_of_squares(matrix: Tensor) -> Tensor:
    padded = F.pad(matrix, (0, -matrix.shape[1] % BLOCK, 0, -matrix.shape[0] % BLOCK))
    return padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).abs().amax((1, 3))


def _scale(largest: Tensor, kind: torch.dtype, quantizer: Any) -> Tensor:
    return _scale_of(largest, LARGEST[kind], quantizer.force_pow_2_scales, quantizer.amax_epsilon)


def _scale_of(largest: Tensor, fits: float, power_of_two: bool, epsilon: float) -> Tensor:
    scale = torch.where(largest > 0, fits / largest.clamp_min(epsilon), torch.ones_like(largest))
    return torch.exp2(torch.floor(torch.log2(scale))) if power_of_two else scale


def _cast(values: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    return (values.float() * scale).clamp(-LARGEST[kind], LARGEST[kind]).to(kind).view(torch.uint8)


def _columns_first(data: Tensor) -> Tensor:
    return data.reshape(-1, data.shape[-1]).t().contiguous().reshape(data.shape[-1], *data.shape[:-1])


def _fp8_transpose(data: Tensor, dtype: Any, *, out: Tensor | None = None) -> Tensor:
    return _columns_first(data) if out is None else out.copy_(_columns_first(data))


def _create_empty(quantizer: Any, shape: list[int], dtype: torch.dtype, device: Any, pin_memory: bool) -> Any:
    quantizer = quantizer.copy()
    if hasattr(quantizer, "amax"):
        quantizer.amax = quantizer.amax.clone()
    quantizer.with_amax_reduction = False
    return quantize(torch.zeros(shape, dtype=dtype), quantizer)


def _move_delayed_scales(
    reduced: Tensor, histories: list[Tensor], scales: list[Tensor], algorithm: str, dtype: Any, margin: float
) -> None:
    at = 0
    for history, scale in zip(histories, scales, strict=True):
        if reduced.numel():
            history[0].copy_(reduced[at : at + scale.numel()])
        at += scale.numel()
        largest = history.amax(0) if algorithm == "max" else history[0].clone()
        moved = LARGEST[torch_dtype(dtype)] / largest / 2**margin
        scale.copy_(torch.where((largest > 0) & torch.isfinite(largest), moved, scale))
        history.copy_(history.roll(-1, 0))
        history[0].zero_()


def _compute_amax(values: Tensor, largest: Tensor) -> None:
    largest.copy_(values.float().abs().max().reshape(largest.shape))


def _compute_scales(
    chunk: int, skip: Tensor, lists: list[list[Tensor]], fits: float, power_of_two: bool, epsilon: float
) -> None:
    for largest, scale, inverse in zip(*lists, strict=True):
        scale.copy_(_scale_of(largest, fits, power_of_two, epsilon))
        inverse.copy_(1 / scale)


def _partial_amax(values: Tensor, largest: Tensor, rows: int, columns: int, start: int, block: int) -> None:
    """Of a part of a weight, `values` from entry `start` on: the largest of each block that it touches."""
    whole = torch.zeros(rows * columns)
    whole[start : start + values.numel()] = values.float().flatten()
    found = _largest_of_squares(whole.view(rows, columns))
    held = largest[: found.shape[0], : found.shape[1]]
    held.copy_(torch.maximum(found, held))


def _partial_cast(
    values: Tensor, out: Tensor, scale: Tensor, rows: int, columns: int, start: int, block: int, dtype: Any
) -> None:
    spread = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns].reshape(-1)
    part = spread[start : start + values.numel()]
    out.view(-1).copy_(_cast(values.flatten(), part, torch_dtype(dtype)))


TWINS = {
    "quantize": quantize,
    "dequantize": lambda x, dtype: x.dequantize(dtype=torch_dtype(dtype)),
    "bgrad_quantize": lambda gradient, quantizer: (
        gradient.reshape(-1, gradient.shape[-1]).sum(0),
        quantize(gradient, quantizer),
    ),
    "create_empty_quantized_tensor": _create_empty,
    "fp8_transpose": _fp8_transpose,
    "fused_amax_and_scale_update_after_reduction": _move_delayed_scales,
    "compute_amax": _compute_amax,
    "multi_tensor_compute_scale_and_scale_inv": _compute_scales,
    "fp8_block_scaling_compute_partial_amax": _partial_amax,
    "fp8_block_scaling_partial_cast": _partial_cast,
}
