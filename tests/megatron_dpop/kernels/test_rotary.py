"""Rotation and gather in Triton's interpreter, beside plain torch and its gradient."""

import numpy as np
import pytest
import torch

from megatron_dpop.kernels import rotary
from megatron_dpop.models.layout import Rotation
from megatron_dpop.models.rotary import rotate
from megatron_dpop.models.varlen import varlen_blocks
from megatron_dpop.rows.context import attention_plan
from tests.megatron_dpop.kernels.interpreted import interpreted

pytestmark = interpreted

TREES = [(2, 1, 2), (1, 1, 1, 1), (1,)]
TOKENS = 12  # two of padding


def _case(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, turned: int, interleaved: bool = False
) -> tuple:
    torch.manual_seed(0)
    group = heads // kv_heads
    mixed = torch.randn(TOKENS, kv_heads, group + 2, head_dim).to(dtype).requires_grad_()  # as Megatron splits it
    query = mixed[:, :, :group].reshape(TOKENS, heads, head_dim)
    angles = torch.randn(TOKENS, 1, turned)
    rotation = Rotation(angles.cos(), angles.sin(), interleaved)
    return query, mixed[:, :, group], mixed[:, :, group + 1], rotation


def _plain(query, key, value, rotation, index):
    turned_query, turned_key = (rotate(x, rotation, torch.float32).to(x.dtype) for x in (query, key))
    return turned_query, turned_key.index_select(0, index), value.index_select(0, index)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "turned", "interleaved", "dtype"),
    [
        (4, 2, 16, 8, False, torch.bfloat16),
        (9, 3, 24, 12, False, torch.float32),
        (20, 20, 8, 2, False, torch.float32),
        (4, 2, 16, 8, True, torch.bfloat16),
        (4, 2, 24, 4, True, torch.float32),
    ],
)
def test_rotated_and_gathered_as_by_plain_torch(
    heads: int, kv_heads: int, head_dim: int, turned: int, interleaved: bool, dtype: torch.dtype
) -> None:
    """Whole heads and parts of them, halves and neighbours."""
    query, key, value, rotation = _case(dtype, heads, kv_heads, head_dim, turned, interleaved)
    blocks = varlen_blocks(attention_plan(TREES, TOKENS))
    index = torch.from_numpy(blocks.key_index)
    expected = _plain(query, key, value, rotation, index)
    grads = [torch.randn(part.shape).to(dtype) for part in expected]
    wanted = torch.autograd.grad(expected, (query, key, value), grads)
    angles = rotary.Angles(rotation.cosines, rotation.sines, rotation.interleaved)
    copies = rotary.Copies(*(torch.from_numpy(part) for part in (blocks.key_index, blocks.copy_offsets, blocks.copies)))
    with torch.no_grad():
        found = rotary.gather_forward(query, key, value, angles, copies)
        found_grads = rotary.gather_backward(*grads, TOKENS, angles, copies)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2**-7, "atol": 2**-5}
    for part, other in zip((*found, *found_grads), (*expected, *wanted), strict=True):
        torch.testing.assert_close(part, other.detach(), **tolerance)


def test_context_parallel_ranks_rotate_first_and_gather_then() -> None:
    """In two steps, with a collective between, the result is that of one."""
    query, key, value, rotation = _case(torch.float32, 4, 2, 16, 8)
    blocks = varlen_blocks(attention_plan(TREES, TOKENS))
    angles = rotary.Angles(rotation.cosines, rotation.sines, rotation.interleaved)
    copies = rotary.Copies(*(torch.from_numpy(part) for part in (blocks.key_index, blocks.copy_offsets, blocks.copies)))
    with torch.no_grad():
        once = rotary.gather_forward(query, key, value, angles, copies)
        turned, keys, values = rotary.gather_forward(query, key, value, angles, None)
        none, gathered_keys, gathered_values = rotary.gather_forward(None, keys, values, None, copies)
        assert none is None
        for part, other in zip((turned, gathered_keys, gathered_values), once, strict=True):
            assert torch.equal(part, other)
        grads = [torch.randn(part.shape) for part in once]
        whole = rotary.gather_backward(*grads, TOKENS, angles, copies)
        none, key_grad, value_grad = rotary.gather_backward(None, *grads[1:], TOKENS, None, copies)
        assert none is None
        parts = rotary.gather_backward(grads[0], key_grad, value_grad, TOKENS, angles, None)
    for part, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-6, atol=1e-6)


def test_every_copy_is_its_tokens() -> None:
    blocks = varlen_blocks(attention_plan(TREES, TOKENS))
    assert len(blocks.copy_offsets) == TOKENS + 1
    for token in range(TOKENS):
        rows = blocks.copies[blocks.copy_offsets[token] : blocks.copy_offsets[token + 1]]
        assert np.array_equal(rows, np.flatnonzero(blocks.key_index == token))
