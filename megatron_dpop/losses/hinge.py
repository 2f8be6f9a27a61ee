"""SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425), reference-normalised (Liu et al. 2023, 2309.06657)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.hyperparameters import number
from megatron_dpop.losses.likelihood import PairHyperparameters
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, split_pairs


@dataclass(frozen=True)
class HingeHyperparameters(PairHyperparameters):
    """beta: the reciprocal of the margin in nats."""

    beta: float = number(0.1, above=0)


def hinge_loss(batch: CompletionBatch, hyperparameters: HingeHyperparameters) -> LossOutput:
    """max(0, 1 - beta (log pi(w)/ref(w) - log pi(l)/ref(l))).

    SLiC's max(0, delta - log pi(w) + log pi(l)) with the reference subtracted, as the second paper
    normalises it, and delta = 1 / beta. The reward of a completion is beta log pi/ref.
    """
    rewards = split_pairs(hyperparameters.beta * log_ratios(batch), batch.preferred)
    losses = F.relu(1 - (rewards.chosen - rewards.rejected))
    return LossOutput(losses, pair_metrics(batch, rewards))
