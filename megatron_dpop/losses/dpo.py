"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7)."""

from __future__ import annotations

import torch.nn.functional as F

from megatron_dpop.config.losses import DpoConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, ratio_pairs, scaled_pairs, split_pairs


def dpo_loss(batch: CompletionBatch, options: DpoConfig) -> LossOutput:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta (log pi(w)/ref(w) - log pi(l)/ref(l)).

    Log-probabilities are summed over tokens, or averaged for `average: tokens`: length-normalised DPO (Tulu 3,
    Lambert et al. 2024, arXiv 2411.15124, equation 6), whose beta is larger, 5 there. e is label_smoothing
    (conservative DPO, Mitchell 2023). The reward of a completion is beta log pi/ref of sums under either.
    """
    ratios = ratio_pairs(batch, options.average)
    z = options.beta * (ratios.chosen - ratios.rejected)
    smoothing = options.label_smoothing
    losses = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
    rewards = scaled_pairs(split_pairs(log_ratios(batch), batch.preferred), options.beta)
    return LossOutput(losses, pair_metrics(batch, rewards))
