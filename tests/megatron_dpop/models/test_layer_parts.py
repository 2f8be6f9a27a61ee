"""Norm, gate and rotary embedding, each one autograd function here, against torch's and Megatron-Core's own."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor

from megatron_dpop.models.gate import GatedSilu
from megatron_dpop.models.gelu import GatedGelu
from megatron_dpop.models.layout import Rotation
from megatron_dpop.models.norm import RMSNorm
from megatron_dpop.models.rotary import rotate

TOKENS, HIDDEN = 37, 48


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _with_gradient(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result, then the gradient of each input."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = function(*leaves)
    result.backward(grad)
    return [result.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_norm_is_torchs(dtype: torch.dtype, tolerance: float, zero_centered: bool) -> None:
    config = SimpleNamespace(params_dtype=dtype, sequence_parallel=False, layernorm_zero_centered_gamma=zero_centered)
    norm = RMSNorm(config, HIDDEN, eps=1e-5)
    norm.weight.data.add_(_random(HIDDEN, seed=1).to(dtype))
    states, grad = _random(TOKENS, 1, HIDDEN, dtype=dtype), _random(TOKENS, 1, HIDDEN, dtype=dtype, seed=2)
    found = [*_with_gradient(norm, [states], grad), norm.weight.grad]
    expected = _with_gradient(
        lambda states, weight: F.rms_norm(states, (HIDDEN,), weight + zero_centered, 1e-5),
        [states.double(), norm.weight.detach().double()],
        grad.double(),
    )
    for mine, exact in zip(found, expected, strict=True):
        assert mine is not None
        assert mine.dtype is dtype
        torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_has_the_bits_of_the_unfused_one(dtype: torch.dtype) -> None:
    states, grad = _random(TOKENS, 1, 2 * HIDDEN, dtype=dtype), _random(TOKENS, 1, HIDDEN, dtype=dtype, seed=1)

    def unfused(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * (up + 0.0)

    for found, expected in zip(
        _with_gradient(GatedSilu(SimpleNamespace(fused_kernels=False)), [states], grad),
        _with_gradient(unfused, [states], grad),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_gelu_gate_is_torchs() -> None:
    states, grad = _random(TOKENS, 1, 2 * HIDDEN), _random(TOKENS, 1, HIDDEN, seed=1)

    def unfused(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up

    for found, expected in zip(
        _with_gradient(GatedGelu(None), [states], grad), _with_gradient(unfused, [states], grad), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gate", [GatedSilu, GatedGelu])
def test_gate_keeps_its_input_alone(gate: type[torch.nn.Module]) -> None:
    states = _random(TOKENS, 2 * HIDDEN).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gate(SimpleNamespace(fused_kernels=False))(states)
    assert [tensor.shape for tensor in kept] == [states.shape]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [16, 12, 4])
def test_rotation_is_megatrons(rotary_dim: int, interleaved: bool) -> None:
    heads, head_dim = 3, 16
    angles = _random(TOKENS, rotary_dim // 2)
    rotation = Rotation(angles[:, None].cos(), angles[:, None].sin(), interleaved)
    states, grad = _random(TOKENS, heads, head_dim), _random(TOKENS, heads, head_dim, seed=1)
    both = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angles, angles), dim=-1)
    freqs = both[:, None, None, :]

    def megatrons(states: Tensor) -> Tensor:
        return _apply_rotary_pos_emb_bshd(states[:, None], freqs, rotary_interleaved=interleaved)[:, 0]

    expected = _with_gradient(megatrons, [states], grad)
    found = _with_gradient(lambda states: rotate(states, rotation, torch.float32), [states], grad)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_rotation_of_bf16_is_exact_to_fp32() -> None:
    """Attention on a CPU is in fp32, and so is the rotation before it: nothing is rounded to bf16 between."""
    angles = _random(TOKENS, 8)
    rotation = Rotation(angles[:, None].cos(), angles[:, None].sin())
    states = _random(TOKENS, 2, 16, dtype=torch.bfloat16)
    assert torch.equal(rotate(states, rotation, torch.float32), rotate(states.float(), rotation, torch.float32))
