"""Turns the last stage's hidden states into log-probabilities, sums of states, or next tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_dpop.logprobs.chunking import Chunking
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs


@dataclass(frozen=True)
class Scores:
    """What a row asks of this rank's output layer (`megatron_dpop.rows.context.RowShard`, as tensors on the device)."""

    positions: Tensor  # int64 [scores], index into the rank's tokens
    targets: Tensor  # int64 [scores]
    member_score: Tensor  # int64 [members], grouped by sequence
    sequence_lengths: Tensor  # int64 [sequences], members of each sequence that this rank scores
    member_place: Tensor  # int64 [members], index into the row's members
    row_members: int  # of the whole row: those of all context-parallel ranks
    vocab_size: int  # true size, without padding
    tensor_group: torch.distributed.ProcessGroup
    context_group: torch.distributed.ProcessGroup
    chunking: Chunking | None = None  # tile of logits; None: the device's default
    fused: bool = False  # Triton's kernels, on a GPU
    member_weight: Tensor | None = None  # fp32 [members], what each counts in its sequence's sum; None: 1


def score_row(*, context: Scores, **output: Any) -> Tensor:
    """Megatron's `output_processor`: log-probability of each completion, summed over its tokens by their weights, fp32
    [sequences].
    """
    # On the CPU token after token: a completion's sum has the same bits wherever it stands in a row.
    members = _member_logps(context=context, **output)
    if context.member_weight is not None:
        members = members * context.member_weight
    sums = torch.segment_reduce(members, "sum", lengths=context.sequence_lengths, axis=0, unsafe=True)
    if context.context_group.size() == 1:
        return sums
    # Each rank goes on with the whole sums, and each passes back the gradient of its own scores.
    return reduce_from_tensor_model_parallel_region(sums, group=context.context_group)


def score_tokens(*, context: Scores, **output: Any) -> Tensor:
    """Megatron's `output_processor`: log-probability of each token of each completion, fp32 [members of the row].

    They come in the order of `Row.member_sequence`, each completion's in the order of its tokens.
    """
    members = _member_logps(context=context, **output)
    if context.context_group.size() == 1:
        return members
    row = members.new_zeros(context.row_members).index_copy(0, context.member_place, members)
    return reduce_from_tensor_model_parallel_region(row, group=context.context_group)


def score_states(*, hidden_states: Tensor, context: Scores, config: TransformerConfig, **_: Any) -> Tensor:
    """Megatron's `output_processor`: each completion's sum of the hidden states at the places that predict its scored
    tokens, fp32 [sequences, hidden].
    """
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states, group=context.tensor_group)
    members = hidden_states[:, 0].index_select(0, context.positions.index_select(0, context.member_score)).float()
    sums = torch.segment_reduce(members, "sum", lengths=context.sequence_lengths, axis=0, unsafe=True)
    if context.context_group.size() == 1:
        return sums
    return reduce_from_tensor_model_parallel_region(sums, group=context.context_group)


def score_next_tokens(
    *,
    hidden_states: Tensor,
    output_layer: ColumnParallelLinear,
    output_weight: Tensor | None,
    context: Scores,
    config: TransformerConfig,
    **_: Any,
) -> Tensor:
    """Megatron's `output_processor`: the most likely token at each member's place, fp32 [members of the row].

    fp32 holds every id below 2^24.
    """
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states, group=context.tensor_group)
    places = context.positions.index_select(0, context.member_score)
    logits = torch.nn.functional.linear(hidden_states[:, 0].index_select(0, places), weight).float()
    first = context.tensor_group.rank() * weight.shape[0]
    logits[:, max(0, context.vocab_size - first) :] = -torch.inf  # padding of the vocabulary
    best, token = logits.max(dim=-1)
    mine = torch.stack((best, (token + first).float()))  # fp32 [2, members]
    shards = [torch.empty_like(mine) for _ in range(context.tensor_group.size())]
    torch.distributed.all_gather(shards, mine, group=context.tensor_group)
    bests, tokens = torch.stack(shards).unbind(1)  # [ranks, members]
    members = tokens.gather(0, bests.argmax(dim=0, keepdim=True))[0]
    if context.context_group.size() == 1:
        return members
    row = members.new_zeros(context.row_members).index_copy(0, context.member_place, members)
    return reduce_from_tensor_model_parallel_region(row, group=context.context_group)


def _member_logps(
    *,
    hidden_states: Tensor,  # [tokens / cp (/ tp under sequence parallelism), 1, hidden]
    output_layer: ColumnParallelLinear,
    output_weight: Tensor | None,
    context: Scores,
    config: TransformerConfig,
    **_: Any,
) -> Tensor:
    """Log-probability of each member that this rank scores, fp32 [members]."""
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        # Its backward reduce-scatters the partial gradients, so the log-probabilities leave theirs unreduced.
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=True, group=context.tensor_group
        )
    scored = hidden_states[:, 0].index_select(0, context.positions)
    logps = vocab_parallel_linear_logprobs(
        scored,
        weight,
        context.targets,
        vocab_size=context.vocab_size,
        tp_group=context.tensor_group,
        reduce_hidden_grad=not config.sequence_parallel,
        chunking=context.chunking,
        fused=context.fused and weight.is_cuda,
    )
    return logps.index_select(0, context.member_score)
