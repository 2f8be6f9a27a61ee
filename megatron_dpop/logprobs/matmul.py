"""Matrix products of low-precision operands with fp32 results.

A product of two bf16 numbers is exact in fp32, so what matters is that the sum is never rounded to bf16:
a bf16 logit of magnitude 20 carries up to 0.06 nats of error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64 operands."""
    return torch.promote_types(dtype, torch.float32)


def operand(tensor: Tensor) -> Tensor:
    """The tensor in the dtype in which it enters products.

    CUDA multiplies bf16 operands with fp32 results. The CPU's bf16 product rounds its result, so there the
    operands are widened first; on one tile at a time this costs 2 to 5% of the product.
    """
    if tensor.is_cuda:
        return tensor
    return tensor.to(accumulation_dtype(tensor.dtype))


@lru_cache(maxsize=1)
def has_matrix_tiles() -> bool:
    """True on CPUs with AMX, which multiply bf16 matrices many times faster than fp32 ones.

    Asked of the processor and not measured: the same machine must choose alike in every run.
    """
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def narrow_operands(tensor: Tensor) -> Iterator[None]:
    """Within it, fp32 products on CPUs with matrix tiles narrow their operands to bf16 if `tensor` is bf16.

    For operands that `operand` has widened nothing is lost: products are exact and summed in fp32. Others, such as
    the gradient of logits, are rounded as on CUDA.
    """
    if tensor.is_cuda or tensor.dtype is not torch.bfloat16 or not has_matrix_tiles():
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with the result in the accumulation dtype; the operands have one dtype."""
    dtype = accumulation_dtype(left.dtype)
    if left.dtype == dtype:
        return torch.mm(left, right)
    return torch.mm(left, right, out_dtype=dtype)


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place, added by the product itself; `total` has the accumulation dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
