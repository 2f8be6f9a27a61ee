"""Alignment Fine-Tuning on groups of ranked answers (Wang et al. 2023, arXiv 2309.02144)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dpop_base.metric_names import ACCURACY, CHOSEN_LOGP, MARGIN, REJECTED_LOGP
from megatron_dpop.config.losses import AftConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput


def aft_loss(batch: CompletionBatch, options: AftConfig) -> LossOutput:
    """log(1 + sum over chosen w and rejected l of exp(s_l - s_w)), one value per group.

    s is a completion's log-probability, summed over tokens, or averaged for `reduction: mean` (the paper's
    score). `constraint: detached` lets no gradient into the rejected scores, so that the loss can only
    raise the chosen ones. A group without either side has loss zero.

    Metrics count completions; `rewards/accuracies` and `rewards/margins` count groups: whether every
    chosen score is above every rejected one, and the difference of the sides' mean scores.
    """
    scores = batch.logps / batch.lengths if options.reduction == "mean" else batch.logps
    preferred = batch.preferred
    rejected_scores = scores.detach() if options.constraint == "detached" else scores
    # The double sum factors: sum_l exp(s_l) * sum_w exp(-s_w).
    winners = _group_log_sum_exp(-scores, preferred, batch)
    losers = _group_log_sum_exp(rejected_scores, ~preferred, batch)
    complete = _group_count(preferred, batch).bool() & _group_count(~preferred, batch).bool()
    # softplus; torch.nn.functional.softplus is linear, not exact, above 20.
    losses = torch.where(complete, -F.logsigmoid(-(winners + losers)), 0)
    return LossOutput(losses, _metrics(batch, scores.detach(), complete))


def _group_log_sum_exp(values: Tensor, mask: Tensor, batch: CompletionBatch) -> Tensor:
    """log-sum-exp over the masked members of each group [groups]; 0 for a group without any."""
    floor = torch.finfo(values.dtype).min
    masked = torch.where(mask, values, floor)
    maximum = _group_reduce(masked.detach(), "amax", floor, batch)
    present = _group_count(mask, batch) > 0
    maximum = torch.where(present, maximum, 0)
    # Both sides of exp are masked: an overflow outside the mask reaches neither the value nor the gradient.
    shifted = torch.where(mask, values, 0) - maximum[batch.example]
    exp = torch.where(mask, shifted.exp(), 0)
    total = values.new_zeros(batch.num_examples).index_add(0, batch.example, exp)
    return torch.where(present, total, 1).log() + maximum


def _group_reduce(values: Tensor, reduce: str, start: float, batch: CompletionBatch) -> Tensor:
    return values.new_full((batch.num_examples,), start).scatter_reduce(0, batch.example, values, reduce)


def _group_count(mask: Tensor, batch: CompletionBatch) -> Tensor:
    """Members of each group in the mask, fp32 [groups]."""
    ones = mask.to(torch.float32)
    return ones.new_zeros(batch.num_examples).index_add(0, batch.example, ones)


def _metrics(batch: CompletionBatch, scores: Tensor, complete: Tensor) -> dict[str, Tensor]:
    preferred, logps = batch.preferred, batch.logps.detach()
    limits = torch.finfo(scores.dtype)
    worst_winner = _group_reduce(torch.where(preferred, scores, limits.max), "amin", limits.max, batch)
    best_loser = _group_reduce(torch.where(preferred, limits.min, scores), "amax", limits.min, batch)
    means = [
        scores.new_zeros(batch.num_examples).index_add(0, batch.example, torch.where(side, scores, 0))
        / _group_count(side, batch).clamp(min=1)
        for side in (preferred, ~preferred)
    ]
    return {
        CHOSEN_LOGP: logps[preferred],
        REJECTED_LOGP: logps[~preferred],
        MARGIN: (means[0] - means[1])[complete],
        ACCURACY: (worst_winner > best_loser).to(scores.dtype)[complete],
    }
