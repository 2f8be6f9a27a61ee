"""SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425), reference-normalised (Liu et al. 2023, 2309.06657)."""

from __future__ import annotations

import torch.nn.functional as F

from megatron_dpop.config.losses import HingeConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, split_pairs


def hinge_loss(batch: CompletionBatch, options: HingeConfig) -> LossOutput:
    """max(0, 1 - beta (log pi(w)/ref(w) - log pi(l)/ref(l))).

    SLiC's max(0, delta - log pi(w) + log pi(l)) with the reference subtracted, as the second paper
    normalises it, and delta = 1 / beta. The reward of a completion is beta log pi/ref.
    """
    rewards = split_pairs(options.beta * log_ratios(batch), batch.preferred)
    losses = F.relu(1 - (rewards.chosen - rewards.rejected))
    return LossOutput(losses, pair_metrics(batch, rewards))
