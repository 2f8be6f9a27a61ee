"""Pair losses that judge each answer by itself against the reference, so that a margin alone does not satisfy them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import sigmoid

from megatron_dpop.config.losses import AnchoredConfig, SppoHardConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import Pairs, log_ratios, pair_metrics, scaled_pairs, split_pairs


def apo_zero_loss(batch: CompletionBatch, options: AnchoredConfig) -> LossOutput:
    """1 - sigmoid(beta r(w)) + sigmoid(beta r(l)), r = log pi/ref (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    Raises the chosen and lowers the rejected answer, each relative to the reference: for data whose chosen answers
    are better than what the model writes.
    """
    rewards = _rewards(batch, options.beta)
    # sigmoid(-x) and not 1 - sigmoid(x), which rounds small losses to zero.
    losses = sigmoid(-rewards.chosen) + sigmoid(rewards.rejected)
    return LossOutput(losses, pair_metrics(batch, rewards))


def apo_down_loss(batch: CompletionBatch, options: AnchoredConfig) -> LossOutput:
    """sigmoid(beta r(w)) + 1 - sigmoid(beta (r(w) - r(l))) (arXiv 2408.06266, equation 8).

    Lowers the chosen answer, and the rejected one more: for data whose chosen answers are worse than what the
    model writes.
    """
    rewards = _rewards(batch, options.beta)
    losses = sigmoid(rewards.chosen) + sigmoid(rewards.rejected - rewards.chosen)
    return LossOutput(losses, pair_metrics(batch, rewards))


def nca_loss(batch: CompletionBatch, options: AnchoredConfig) -> LossOutput:
    """-log sigmoid(R(w)) - 1/2 log sigmoid(-R(w)) - 1/2 log sigmoid(-R(l)), R = beta log pi/ref.

    Noise Contrastive Alignment for pairs (Chen et al. 2024, arXiv 2402.05369, equation 11 with two answers). The
    chosen reward has its optimum at log 2, so it neither falls below the reference nor grows without end.
    """
    rewards = _rewards(batch, options.beta)
    losses = -F.logsigmoid(rewards.chosen) - 0.5 * (F.logsigmoid(-rewards.chosen) + F.logsigmoid(-rewards.rejected))
    return LossOutput(losses, pair_metrics(batch, rewards))


def bco_loss(batch: CompletionBatch, options: AnchoredConfig) -> LossOutput:
    """-log sigmoid(R(w)) - log sigmoid(-R(l)), R = beta log pi/ref (Jung et al. 2024, arXiv 2404.04656).

    A binary classifier of each answer. The paper's reward shift, a running mean of rewards, is left at zero, as
    TRL has it: with a running mean a pair's loss would depend on the steps before it.
    """
    rewards = _rewards(batch, options.beta)
    losses = -F.logsigmoid(rewards.chosen) - F.logsigmoid(-rewards.rejected)
    return LossOutput(losses, pair_metrics(batch, rewards))


def sppo_hard_loss(batch: CompletionBatch, options: SppoHardConfig) -> LossOutput:
    """(r(w) - 1/(2 beta))^2 + (r(l) + 1/(2 beta))^2, r = log pi/ref (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    The win rates of the paper's equation are taken as 1 and 0, as TRL does, not estimated by a preference model.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    target = 0.5 / options.beta
    losses = (ratios.chosen - target).square() + (ratios.rejected + target).square()
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, options.beta)))


def _rewards(batch: CompletionBatch, beta: float) -> Pairs:
    """beta log pi/ref of both sides, differentiable."""
    return split_pairs(beta * log_ratios(batch), batch.preferred)
