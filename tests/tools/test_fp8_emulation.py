"""The emulated recipes differ in what a token's rounding depends on, as Transformer Engine's do."""

import pytest
import torch
from fp8_emulation import emulate_fp8
from torch import Tensor, nn

HIDDEN = 256


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:  # [tokens, 1, hidden]
        return self.linear_fc1(hidden)


def _layer(recipe: str | None) -> Layer:
    torch.manual_seed(0)
    layer = Layer().requires_grad_(False)
    if recipe:
        emulate_fp8([layer], recipe)
    return layer


def _hidden(tokens: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(tokens, 1, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "delayed"])
def test_rounding_is_that_of_three_bits_of_mantissa(recipe: str) -> None:
    weight, rounded = (_layer(name).linear_fc1.weight for name in (None, recipe))
    normal = weight.abs() > weight.abs().max() * 2.0**-12  # smaller ones may be subnormal
    error = ((rounded - weight) / weight)[normal].abs().max()
    assert 2.0**-6 < error <= 2.0**-4
    exact, found = _layer(None)(_hidden(64, 1)), _layer(recipe)(_hidden(64, 1))
    assert 0.005 < ((found - exact).norm() / exact.norm()).item() < 0.06


def test_company_in_a_row_shows_under_one_scale_a_tensor_alone() -> None:
    mine, loud = _hidden(8, 1), _hidden(8, 2, scale=100.0)
    moved = {}
    for recipe in ("tensorwise", "blockwise"):
        layer = _layer(recipe)
        moved[recipe] = (layer(mine) - layer(torch.cat((mine, loud)))[:8]).abs().max().item()
    assert moved["blockwise"] < 1e-5  # another order of the same sums
    assert moved["tensorwise"] > 1e-2


def test_delayed_scaling_depends_on_what_came_before() -> None:
    mine, loud = _hidden(8, 1), _hidden(8, 2, scale=100.0)
    layer = _layer("delayed")
    first = layer(mine)
    assert torch.equal(layer(mine), first)
    layer(loud)
    assert not torch.equal(layer(mine), first)
