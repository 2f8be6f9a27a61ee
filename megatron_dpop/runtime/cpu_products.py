"""Makes bf16 matrix products fast on CPUs without instructions for them (x86 without AVX-512).

torch multiplies bf16 matrices there in loops of its own, up to forty times slower than it multiplies fp32 ones. Here
the operands are widened to fp32, multiplied, and the result is rounded to bf16 once. That is also what processors with
bf16 instructions compute: a product of two bf16 numbers is exact in fp32, and sums are kept in fp32.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of `aten`, with the number of operands; the last two of them are multiplied. Linear layers and their gradients, and
# `torch.matmul`, come down to these.
PRODUCTS = {"mm": 2, "bmm": 2, "addmm": 3, "baddbmm": 3}

_library: torch.library.Library | None = None  # kept, since its kernels are unregistered when it is deleted


def has_bf16_products() -> bool:
    """True where torch multiplies bf16 matrices by oneDNN, which needs AVX-512 or its like."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widen_bf16_products() -> None:
    """Replaces the CPU's kernels of matrix products in this process; those of other dtypes compute what they did."""
    global _library
    if _library is None:
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # torch before 2.13 says in eight lines that a kernel is replaced, though it was asked to.
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for name, operands in PRODUCTS.items():
                _library.impl(name, widened(name, operands), "CPU", allow_override=True)


def widened(name: str, operands: int) -> Callable[..., Tensor]:
    """Returns a kernel for that product which computes bf16 operands in fp32 and rounds the result."""
    product = getattr(torch, name)

    def multiply(*args: Any, **options: Any) -> Tensor:
        tensors, others = args[:operands], args[operands:]
        if all(tensor.dtype is torch.bfloat16 for tensor in tensors):
            wide: Tensor = product(*(tensor.float() for tensor in tensors), *others, **options)
            return wide.to(torch.bfloat16)
        # With a result of its own to write to, torch takes the kernel that was not replaced.
        left, right = tensors[-2:]
        result = left.new_empty(*left.shape[:-1], right.shape[-1])
        return product(*args, **options, out=result)

    return multiply
