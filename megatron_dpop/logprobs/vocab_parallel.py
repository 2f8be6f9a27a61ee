"""Linear layer + log-softmax at the targets, as one function that never holds all logits.

Shapes: S scored tokens, H hidden size, V vocabulary rows of this rank's shard (padded vocabulary / TP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_dpop.logprobs.chunking import Chunking, default_chunking
from megatron_dpop.logprobs.matmul import accumulation_dtype, add_product_, narrow_operands, operand, product
from megatron_dpop.logprobs.statistics import SoftmaxStatistics, merge_ranks


@dataclass(frozen=True)
class ScoredTargets:
    """What the output layer says about each target; only `logprobs` is differentiable. All [S]."""

    logprobs: Tensor
    is_top1: Tensor
    entropy: Tensor | None


def vocab_parallel_linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None,
    reduce_hidden_grad: bool = True,
    chunking: Chunking | None = None,
    fused: bool = False,
) -> Tensor:
    """log softmax(hidden @ weight.T)[target] over the whole vocabulary: fp32 [S].

    See `vocab_parallel_linear_scores`, which also gives metrics of the same pass.
    """
    return vocab_parallel_linear_scores(
        hidden,
        weight,
        targets,
        vocab_size=vocab_size,
        tp_group=tp_group,
        reduce_hidden_grad=reduce_hidden_grad,
        chunking=chunking,
        fused=fused,
    ).logprobs


def vocab_parallel_linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None,
    reduce_hidden_grad: bool = True,
    entropy: bool = False,
    chunking: Chunking | None = None,
    fused: bool = False,
) -> ScoredTargets:
    """Log-probability, top-1 agreement and (on request) entropy at each target, in one pass.

    Args:
        hidden: [S, H] bf16, fp16, fp32 or fp64; the same on all tensor ranks (not sequence-sharded).
        weight: [V, H], this rank's shard of the output (or tied embedding) weight, in hidden's dtype.
            Shards are equal in size and in the order of ranks. Rows at or above `vocab_size` are padding
            and take no probability.
        targets: int64 [S], global token ids below `vocab_size`, the same on all tensor ranks.
        vocab_size: true vocabulary size.
        tp_group: tensor-parallel group; None for an unsharded weight.
        reduce_hidden_grad: all-reduce the gradient of `hidden` over the group (in hidden's dtype). With
            sequence parallelism pass False: the gradient stays this shard's part, for the caller's
            reduce-scatter.
        entropy: also compute the entropy of each distribution (nats).
        chunking: tile of logits alive at a time; the default depends on the device only.
        fused: what is done to a tile beside its products is one Triton kernel each way. Not with entropy.

    Precision: products of bf16 operands are summed in fp32 and logits are never rounded to bf16; all in fp64
    for fp64 inputs. On CUDA, and on CPUs with matrix tiles (AMX), the gradient of bf16 logits is rounded to
    bf16 for its two products, as in any mixed-precision linear layer, and these too are summed in fp32.

    Gradient of `weight`: added in place to `weight.main_grad` where there is one; else summed in fp32 over
    the call and returned in weight's dtype. A weight that Megatron's DDP manages (it has the attribute
    `grad_added_to_main_grad`, which is then set) also gets zeros as its ordinary gradient, so that DDP's
    hook fires; for tied embeddings Megatron's `zero_out_wgrad` must be set, as GPTModel does.

    Memory beyond inputs and gradients: O(chunking.tokens x (chunking.vocab + H)) and a few numbers per scored
    token. A weight in bf16 without an fp32 `main_grad` adds one fp32 [V, H].

    Communication: forward one all-gather of 3 (with entropy 4) numbers per scored token; backward at most
    the one all-reduce. With S = 0 there is none, and since S is the same on all ranks none waits.

    Determinism: the forward pass is the same code with and without gradients, and gives the same bits. A
    target's log-probability does not depend on its position among the scored tokens, nor on which others are
    scored, as long as the matrix library sums a row of a product in an order that depends neither on the
    row's index nor on the number of rows. On the CPU that holds for the default row tile. A GPU library may
    choose kernels by the number of rows; `row_tile == tokens` fixes it. Other vocabulary blocks or tensor
    sizes change the rounding.
    """
    assert hidden.dtype == weight.dtype, f"hidden is {hidden.dtype}, weight is {weight.dtype}"
    options = _Options(
        vocab_size=vocab_size,
        group=tp_group,
        reduce_hidden_grad=reduce_hidden_grad,
        entropy=entropy,
        chunking=chunking or default_chunking(hidden.device),
        fused=fused and not entropy,
    )
    logprobs, is_top1, entropies = _VocabParallelLinearScores.apply(hidden, weight, targets, options)
    return ScoredTargets(logprobs, is_top1, entropies if entropy else None)


@dataclass(frozen=True)
class _Options:
    vocab_size: int
    group: dist.ProcessGroup | None
    reduce_hidden_grad: bool
    entropy: bool
    chunking: Chunking
    fused: bool

    @property
    def sharded(self) -> bool:
        return self.group is not None and dist.get_world_size(self.group) > 1

    def local_vocab(self, weight: Tensor) -> tuple[int, int]:
        """(first global id, number of rows that are not padding) of this rank's shard."""
        first = dist.get_rank(self.group) * len(weight) if self.group is not None else 0
        return first, min(max(self.vocab_size - first, 0), len(weight))


class _VocabParallelLinearScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        torch._assert_async(((targets >= 0) & (targets < options.vocab_size)).all(), "target out of vocabulary")
        with narrow_operands(hidden):
            packed = _local_statistics(hidden, weight, targets, options)
        scores = merge_ranks(packed, _group(options, targets))
        entropies = scores.entropy if scores.entropy is not None else scores.logprobs.new_empty(0)
        ctx.save_for_backward(hidden, weight, targets, scores.log_sum_exp)
        ctx.options = options
        ctx.mark_non_differentiable(scores.is_top1, entropies)
        return scores.logprobs, scores.is_top1, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, log_sum_exp = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.zeros_like(hidden) if needs_hidden else None
        weight_total = _weight_accumulator(weight) if needs_weight else None
        with narrow_operands(hidden):
            _accumulate_gradients(
                hidden, weight, targets, log_sum_exp, grad_logprobs, hidden_grad, weight_total, ctx.options
            )
        if hidden_grad is not None and ctx.options.reduce_hidden_grad and _group(ctx.options, targets):
            dist.all_reduce(hidden_grad, group=ctx.options.group)
        weight_grad = _finish_weight_grad(weight, weight_total) if weight_total is not None else None
        return hidden_grad, weight_grad, None, None


def _group(options: _Options, targets: Tensor) -> dist.ProcessGroup | None:
    """The group to communicate over; none for no scores, which is the case on all ranks or on none."""
    return options.group if options.sharded and targets.numel() else None


def _local_statistics(hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> Tensor:
    """Packed softmax statistics over this rank's vocabulary, [3 or 4, S]."""
    if options.fused:
        return _fused_statistics(hidden, weight, targets, options)
    dtype = accumulation_dtype(hidden.dtype)
    first, rows = options.local_vocab(weight)
    packed = torch.empty(4 if options.entropy else 3, len(targets), dtype=dtype, device=hidden.device)
    for chunk, padded in options.chunking.token_chunks(len(targets)):
        hidden_chunk = operand(_pad_rows(hidden[chunk], padded))
        target_chunk = _pad_rows(targets[chunk], padded) - first
        statistics = SoftmaxStatistics.empty(padded, dtype, hidden.device, entropy=options.entropy)
        for block in options.chunking.vocab_blocks(rows):
            logits = product(hidden_chunk, operand(weight[block]).t())
            statistics.add_block(logits, *_target_column(target_chunk, block))
            del logits  # before the next tile is made
        packed[:, chunk] = statistics.packed()[:, : chunk.stop - chunk.start]
    return packed


def _fused_statistics(hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> Tensor:
    """`_local_statistics` with one product and one kernel a tile."""
    from megatron_dpop.kernels.logits import take_in_logits

    dtype = accumulation_dtype(hidden.dtype)
    first, rows = options.local_vocab(weight)
    chunks = list(options.chunking.token_chunks(len(targets)))
    total = sum(padded for _, padded in chunks)
    packed = torch.zeros(3, total, dtype=dtype, device=hidden.device)
    packed[0].fill_(torch.finfo(dtype).min)
    columns = _pad_rows(targets, total) - first
    for chunk, padded in chunks:
        hidden_chunk = operand(_pad_rows(hidden[chunk], padded))
        place = slice(chunk.start, chunk.start + padded)  # only the last chunk is padded
        for block in options.chunking.vocab_blocks(rows):
            logits = product(hidden_chunk, operand(weight[block]).t())
            take_in_logits(logits, columns[place], block.start, *packed[:, place].unbind())
            del logits
    return packed[:, : len(targets)]


def _accumulate_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sum_exp: Tensor,
    grad_logprobs: Tensor,
    hidden_grad: Tensor | None,
    weight_total: Tensor | None,
    options: _Options,
) -> None:
    """Recomputes each tile of logits; writes hidden_grad [S, H] and adds to weight_total [V, H]."""
    first, rows = options.local_vocab(weight)
    for chunk, padded in options.chunking.token_chunks(len(targets)):
        hidden_chunk = operand(_pad_rows(hidden[chunk], padded))
        target_chunk = _pad_rows(targets[chunk], padded) - first
        normalizer = _pad_rows(log_sum_exp[chunk], padded)
        # Padded rows have no gradient, so they add nothing below.
        grad = _pad_rows(grad_logprobs[chunk].to(log_sum_exp.dtype).contiguous(), padded)
        chunk_total = torch.zeros_like(hidden_chunk, dtype=log_sum_exp.dtype) if hidden_grad is not None else None
        for block in options.chunking.vocab_blocks(rows):
            weight_block = operand(weight[block])
            logits = product(hidden_chunk, weight_block.t())
            gradient = _fused_logits_gradient if options.fused else _logits_gradient
            logits_grad = gradient(logits, target_chunk, block, normalizer, grad, hidden_chunk.dtype)
            if chunk_total is not None:
                add_product_(chunk_total, logits_grad, weight_block)
            if weight_total is not None:
                add_product_(weight_total[block], logits_grad.t(), hidden_chunk)
            del logits, logits_grad
        if hidden_grad is not None and chunk_total is not None:
            hidden_grad[chunk] = chunk_total[: chunk.stop - chunk.start].to(hidden_grad.dtype)


def _logits_gradient(
    logits: Tensor, target: Tensor, block: slice, normalizer: Tensor, grad: Tensor, dtype: torch.dtype
) -> Tensor:
    """d logprob / d logit = onehot(target) - softmax, times `grad` [rows]; overwrites the tile of logits."""
    result = logits.sub_(normalizer[:, None]).exp_().mul_(-grad[:, None])
    column, inside = _target_column(target, block)
    result.scatter_add_(1, column[:, None], torch.where(inside, grad, 0)[:, None])
    return result.to(dtype)


def _fused_logits_gradient(
    logits: Tensor, target: Tensor, block: slice, normalizer: Tensor, grad: Tensor, dtype: torch.dtype
) -> Tensor:
    from megatron_dpop.kernels.logits import logits_gradient

    out = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    return logits_gradient(logits, target, block.start, normalizer, grad, out)


def _target_column(local_target: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """(column within the block, clamped into it; whether the target lies in the block), each [rows]."""
    column = local_target - block.start
    inside = (column >= 0) & (column < block.stop - block.start)
    return column.clamp(0, block.stop - block.start - 1), inside


def _pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """Zero rows appended up to `rows`; no copy where there are that many already."""
    missing = rows - len(tensor)
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, missing)) if missing else tensor


def _weight_accumulator(weight: Tensor) -> Tensor:
    """Where the weight's gradient is summed: `main_grad` itself if its precision suffices."""
    main_grad = getattr(weight, "main_grad", None)
    dtype = accumulation_dtype(weight.dtype)
    if main_grad is not None and main_grad.dtype == dtype:
        return main_grad
    return torch.zeros_like(weight, dtype=dtype)


def _finish_weight_grad(weight: Tensor, total: Tensor) -> Tensor | None:
    """What autograd receives as the weight's gradient."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return total.to(weight.dtype)
    if main_grad is not total:
        main_grad.add_(total)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    # Megatron's DDP: its hook fires only where autograd delivers a gradient. Zeros and not empty memory,
    # because with tied embeddings autograd adds the embedding's gradient to this, and DDP adds the sum to
    # main_grad (`zero_out_wgrad`).
    weight.grad_added_to_main_grad = True
    return torch.zeros_like(weight)
