"""The gate's kernels in Triton's interpreter, beside plain torch."""

import pytest
import torch

from megatron_dpop.kernels import gate
from megatron_dpop.models.gate import _GatedSilu
from tests.megatron_dpop.kernels.interpreted import interpreted

pytestmark = interpreted


@pytest.mark.parametrize("width", [96, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_and_its_gradient_are_those_of_plain_torch(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = (4 * torch.randn(5, 1, 2 * width)).to(dtype).requires_grad_()
    grad = torch.randn(5, 1, width).to(dtype)
    expected = _GatedSilu.apply(given)
    expected.backward(grad)
    # The interpreter cuts fp32 to bf16 where a GPU rounds it, and here there are two or three steps.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2**-5, "atol": 1e-3}
    torch.testing.assert_close(gate.gate_forward(given.detach()), expected.detach(), **tolerance)
    torch.testing.assert_close(gate.gate_backward(given.detach(), grad), given.grad, **tolerance)
