"""Attention over trees equals dense attention under the mask that the trees mean."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from megatron_dpop.models.attention import attend_blocks
from megatron_dpop.models.gathered import gather
from megatron_dpop.models.varlen import blocks_on, cudnn_kernel, flash_kernel, varlen_blocks
from megatron_dpop.rows.context import attention_plan, gathered_order, row_chunks

HEAD_DIM = 8
SCALE = 1 / math.sqrt(HEAD_DIM)
Trees = tuple[tuple[int, ...], ...]

ROWS: dict[str, tuple[Trees, int]] = {
    "pairs": (((5, 3, 4), (7, 2, 2)), 3),
    "chains": (((6, 0), (4,), (5, 0)), 0),
    "empty branches": (((5, 0, 3), (4, 0, 0), (3, 2, 0)), 2),
    "three completions": (((4, 1, 3, 2),), 5),
    "single tokens": (((1, 1, 1), (1,), (1, 0, 0)), 1),
    "padding alone": ((), 6),
}


def _mask(trees: Trees, tokens: int, window: int | None) -> Tensor:
    """[tokens, tokens], true where the row's token sees the column's; written from the definition of a tree."""
    segments = [
        (tree, part) for tree, parts in enumerate(trees) for part, length in enumerate(parts) for _ in range(length)
    ]
    positions = [
        (parts[0] if part else 0) + read
        for parts in trees
        for part, length in enumerate(parts)
        for read in range(length)
    ]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for query, (tree, part) in enumerate(segments):
        for key, (key_tree, key_part) in enumerate(segments[: query + 1]):
            near = window is None or positions[query] - positions[key] < window
            mask[query, key] = tree == key_tree and key_part in (0, part) and near
    return mask


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Masked softmax attention; rows that see nothing give zeros. All [tokens, heads, head_dim]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * SCALE
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", torch.where(mask.any(dim=1)[:, None], weights, 0), value)


def _leaves(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, count, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_dense_attention(
    name: str, heads: int, kv_heads: int, window: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    trees, padding = ROWS[name]
    tokens = sum(map(sum, trees)) + padding
    leaves = _leaves(tokens, heads, kv_heads, dtype)
    mask = _mask(trees, tokens, window)
    outputs = attend_blocks(*leaves, attention_plan(trees, tokens), softmax_scale=SCALE, window=window)
    expected = _dense(*leaves, mask)
    assert outputs.shape == expected.shape == (tokens, heads, HEAD_DIM)
    assert outputs.dtype is dtype
    torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
    if not trees:
        assert not outputs.any()
        return
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad((outputs * upstream).sum(), leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * upstream).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=10 * tolerance, atol=10 * tolerance)


def test_padding_and_other_trees_change_nothing() -> None:
    """Bit for bit, an example's outputs do not depend on what else its row holds."""
    alone = [leaf.detach() for leaf in _leaves(12, 4, 2, torch.float32)]
    other = [leaf.detach() for leaf in _leaves(9, 4, 2, torch.float32)]
    row = [torch.cat((extra, leaf, 100 * extra)) for leaf, extra in zip(alone, other, strict=True)]
    expected = attend_blocks(*alone, attention_plan(((5, 3, 4),), 12), softmax_scale=SCALE)
    found = attend_blocks(*row, attention_plan(((9,), (5, 3, 4)), 30), softmax_scale=SCALE)
    assert torch.equal(found[9:21], expected)
    assert not found[21:].any()


def test_trees_longer_than_the_row_are_refused() -> None:
    with pytest.raises(AssertionError, match="longer than their row"):
        attention_plan(((3, 1, 1),), 4)


def _padded(trees: Trees, padding: int, ranks: int) -> int:
    """Tokens of the row, a multiple of twice the ranks."""
    tokens = sum(map(sum, trees)) + padding
    return tokens + -tokens % (2 * ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ROWS)
def test_context_parallel_ranks_together_see_what_one_sees(name: str, window: int | None, ranks: int) -> None:
    """Each rank's queries against the row's keys; gradients of keys and values summed over ranks."""
    trees, padding = ROWS[name]
    tokens = _padded(trees, padding, ranks)
    leaves = _leaves(tokens, 4, 2, torch.float64)
    expected = _dense(*leaves, _mask(trees, tokens, window))
    parts = []
    for rank in range(ranks):
        chunks = row_chunks(tokens, rank, ranks)
        plan = attention_plan(trees, tokens, chunks)
        assert sum(plan.query_tokens) == tokens // ranks
        mine = leaves[0][torch.cat([torch.arange(*chunk) for chunk in chunks])]
        parts.append(attend_blocks(mine, *leaves[1:], plan, softmax_scale=SCALE, window=window))
    gathered = torch.cat(parts).chunk(2 * ranks)
    outputs = torch.cat([gathered[at] for at in gathered_order(ranks)])
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    if not trees:
        return
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((outputs * upstream).sum(), leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * upstream).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ROWS)
def test_the_variable_length_form_means_the_same(name: str, window: int | None, ranks: int) -> None:
    """The offsets and gathered keys that FlashAttention gets, read by the definition of its causal mask."""
    trees, padding = ROWS[name]
    tokens = _padded(trees, padding, ranks)
    query, key, value = (leaf.detach() for leaf in _leaves(tokens, 4, 2, torch.float64))
    for rank in range(ranks):
        chunks = row_chunks(tokens, rank, ranks)
        plan = attention_plan(trees, tokens, chunks)
        mine = query[torch.cat([torch.arange(*chunk) for chunk in chunks])]
        expected = attend_blocks(mine, key, value, plan, softmax_scale=SCALE, window=window)
        blocks = varlen_blocks(plan)
        assert not expected[blocks.attended :].any()
        assert blocks.query_offsets[-1] == tokens // ranks  # padding is blocks too
        for at in range(len(blocks.query_offsets) - 1):
            seen = torch.from_numpy(blocks.key_index[blocks.key_offsets[at] : blocks.key_offsets[at + 1]])
            block = slice(blocks.query_offsets[at], blocks.query_offsets[at + 1])
            rows, columns = block.stop - block.start, len(seen)
            assert rows <= blocks.longest_query
            assert columns <= blocks.longest_key
            distance = columns - rows + torch.arange(rows)[:, None] - torch.arange(columns)
            mask = (distance >= 0) & (distance < (window or columns + 1))
            assert mask.any(1).all()  # of a row that sees nothing a kernel may make anything
            if block.start >= blocks.attended:
                continue
            found = _dense(mine[block], key[seen], value[seen], mask)
            torch.testing.assert_close(found, expected[block], rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name][0]])
@pytest.mark.parametrize(("kernel", "fused"), [("flash", False), ("flash", True), ("cudnn", True)])
def test_kernels_equal_block_attention_on_a_gpu(name: str, window: int | None, kernel: str, fused: bool) -> None:
    trees, padding = ROWS[name]
    tokens = sum(map(sum, trees)) + padding
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(tokens, heads, 64, generator=generator).to("cuda", torch.bfloat16).requires_grad_()
        for heads in (6, 2, 2)
    ]
    plan = attention_plan(trees, tokens)
    blocks = blocks_on(plan, torch.device("cuda"))
    make = partial(cudnn_kernel, heads=6, kv_heads=2, head_dim=64) if kernel == "cudnn" else flash_kernel
    found = make(softmax_scale=SCALE, window=window)(leaves[0], *gather(*leaves[1:], blocks, fused=fused), blocks)
    found = torch.cat((found[: tokens - padding], torch.zeros_like(found[tokens - padding :])))
    expected = attend_blocks(*(leaf.double() for leaf in leaves), plan, softmax_scale=SCALE, window=window)
    assert _error(found, expected) < 1e-2
    gradients = torch.autograd.grad(found.double().square().sum(), leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        assert _error(gradient, wanted) < 2e-2


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns ||found - wanted|| / ||wanted||; bf16 rounds single entries near zero by more than themselves."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
