"""What the output layer does to a tile of logits beside its products: one read forward, one read and a write backward.

`megatron_dpop.logprobs.vocab_parallel` has the same in plain torch, as some twenty operations.
"""

import triton
import triton.language as tl
from torch import Tensor

from megatron_dpop.kernels.launch import launch

STATISTICS_BLOCK = 4096
GRADIENT_BLOCK = 2048


@triton.jit
def _take_in(logits, target, maximum, sum_exp, target_logit, columns, first_column, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.load(maximum + row)
    total = tl.load(sum_exp + row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < columns, other=-float("inf"))
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
    tl.store(maximum + row, largest)
    tl.store(sum_exp + row, total)
    column = tl.load(target + row) - first_column
    if (column >= 0) & (column < columns):
        tl.store(target_logit + row, tl.load(logits + row * stride + column))


@triton.jit
def _gradient(logits, target, log_sum_exp, grad, out, columns, first_column, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    scale = tl.load(grad + row)
    normalizer = tl.load(log_sum_exp + row)
    column = tl.load(target + row) - first_column
    x = tl.load(logits + row * stride + at, mask=inside, other=0.0)
    result = -scale * tl.exp(x - normalizer) + tl.where(at == column, scale, 0.0)
    tl.store(out + row * columns + at, result.to(out.dtype.element_ty), mask=inside)


def take_in_logits(
    logits: Tensor, target: Tensor, first_column: int, maximum: Tensor, sum_exp: Tensor, target_logit: Tensor
) -> None:
    """Takes a tile of logits, fp32 [rows, columns], into running softmax statistics, fp32 [rows], in place.

    target: int64 [rows], counted from the shard's first row; the tile's first column has number `first_column` there.
    `sum_exp` is of exp(logit - maximum); `target_logit` is set where the target lies in the tile.
    """
    rows, columns = logits.shape
    launch(
        _take_in,
        (rows,),
        logits,
        target,
        maximum,
        sum_exp,
        target_logit,
        columns,
        first_column,
        logits.stride(0),
        BLOCK=min(STATISTICS_BLOCK, triton.next_power_of_2(columns)),
        num_warps=8,
    )


def logits_gradient(
    logits: Tensor, target: Tensor, first_column: int, log_sum_exp: Tensor, grad: Tensor, out: Tensor
) -> Tensor:
    """(onehot(target) - softmax) * grad of a tile, [rows, columns], written to the contiguous `out` in its dtype."""
    rows, columns = logits.shape
    block = min(GRADIENT_BLOCK, triton.next_power_of_2(columns))
    launch(
        _gradient,
        (rows, triton.cdiv(columns, block)),
        logits,
        target,
        log_sum_exp,
        grad,
        out,
        columns,
        first_column,
        logits.stride(0),
        BLOCK=block,
        num_warps=8,
    )
    return out
