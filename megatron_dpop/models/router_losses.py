"""Losses of the router alone: that experts be loaded evenly (arXiv 2101.03961), that logits stay small (2202.08906).

Both are means over the pairs of a step of what holds within a pair, so that neither a pair's row nor its rank matters.
Over all tokens of a row, as is usual, a pair's gradient would depend on what it was packed with.
"""

import torch.distributed as dist
from torch import Tensor

from megatron_dpop.models.layout import RowExamples


def balance_loss(
    probabilities: Tensor, chosen: Tensor, row: RowExamples, *, per_token: int, group: dist.ProcessGroup
) -> Tensor:
    """This rank's part of the row's sum over examples: E * sum over experts of (share of tokens) * (mean probability).

    1 where both are even. probabilities fp32 and chosen bool, both [tokens, experts]; `group`: the ranks that share
    the row. The share of tokens has no gradient, as in the paper.
    """
    experts = probabilities.shape[1]
    empty = probabilities.new_zeros(row.examples, experts)
    loads = empty.index_add(0, row.example, chosen * (row.share / per_token)[:, None])
    if group.size() > 1:
        dist.all_reduce(loads, group=group)
    means = empty.index_add(0, row.example, probabilities * row.share[:, None])
    return experts * (loads * means).sum()


def z_loss(logits: Tensor, row: RowExamples) -> Tensor:
    """This rank's part of the row's sum over examples: the mean square of the logarithm of the softmax's sum."""
    return (logits.logsumexp(-1).square() * row.share).sum()
