"""bf16 products of a CPU that has no instructions for them, and that every other product is left as it was."""

import pytest
import torch
from torch import Tensor

from tests.distributed import run_ranks

SHAPES = {"mm": ((50, 700), (700, 3)), "bmm": ((2, 50, 700), (2, 700, 3))}
ADDED = {"addmm": "mm", "baddbmm": "bmm"}


def operands_of(name: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(shape, generator=generator) * 3 for shape in SHAPES[ADDED.get(name, name)])
    operands = [torch.randn(3, generator=generator), left, right] if name in ADDED else [left, right]
    return [tensor.to(dtype) for tensor in operands]


def products(dtype: torch.dtype) -> dict[str, Tensor]:
    from megatron_dpop.runtime.cpu_products import PRODUCTS

    return {name: getattr(torch, name)(*operands_of(name, dtype)) for name in PRODUCTS}


def check_rounded_once() -> None:
    from megatron_dpop.runtime.cpu_products import widen_bf16_products

    widen_bf16_products()
    for name, found in products(torch.bfloat16).items():
        wide = getattr(torch, name)(*(tensor.float() for tensor in operands_of(name, torch.bfloat16)))
        assert torch.equal(found, wide.to(torch.bfloat16)), name
        exact = getattr(torch, name)(*(tensor.double() for tensor in operands_of(name, torch.bfloat16)))
        assert (found.double() - exact).abs().max() <= 2**-8 * exact.abs().max() * (1 + 2**-10), name


def check_as_before(dtype: torch.dtype) -> None:
    from megatron_dpop.runtime.cpu_products import widen_bf16_products

    before = products(dtype)
    widen_bf16_products()
    for name, after in products(dtype).items():
        assert after.dtype is dtype
        assert torch.equal(before[name], after), name


def check_gradients() -> None:
    """A linear layer's result and gradients beside those in fp32, rounded once."""
    from megatron_dpop.runtime.cpu_products import widen_bf16_products

    widen_bf16_products()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        bias, left, right = (tensor.to(dtype).requires_grad_() for tensor in operands_of("addmm", torch.bfloat16))
        result = torch.nn.functional.linear(left, right.t(), bias)
        found.append((result, *torch.autograd.grad(result, (left, right), torch.ones_like(result))))
    for narrow, wide in zip(*found, strict=True):
        assert torch.equal(narrow, wide.to(torch.bfloat16))


def test_a_product_is_summed_in_fp32_and_rounded_once() -> None:
    run_ranks(check_rounded_once, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_products_are_as_before(dtype: torch.dtype) -> None:
    run_ranks(check_as_before, 1, dtype)


def test_gradients_pass_through() -> None:
    run_ranks(check_gradients, 1)
