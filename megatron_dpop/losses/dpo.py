"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.hyperparameters import choice, number
from megatron_dpop.losses.likelihood import PairHyperparameters
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, ratio_pairs, scaled_pairs, split_pairs


@dataclass(frozen=True)
class DpoHyperparameters(PairHyperparameters):
    """beta: strength of the tie to the reference; label_smoothing: assumed share of swapped labels; average: `tokens`
    divides each log-ratio by the completion's number of tokens.
    """

    beta: float = number(0.1, above=0)
    label_smoothing: float = number(0.0, at_least=0, below=0.5)
    average: str = choice("none", "tokens")


def dpo_loss(batch: CompletionBatch, hyperparameters: DpoHyperparameters) -> LossOutput:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta (log pi(w)/ref(w) - log pi(l)/ref(l)).

    Log-probabilities are summed over tokens, or averaged for `average: tokens`: length-normalised DPO (Tulu 3,
    Lambert et al. 2024, arXiv 2411.15124, equation 6), whose beta is larger, 5 there. e is label_smoothing
    (conservative DPO, Mitchell 2023). The reward of a completion is beta log pi/ref of sums under either.
    """
    ratios = ratio_pairs(batch, hyperparameters.average)
    z = hyperparameters.beta * (ratios.chosen - ratios.rejected)
    smoothing = hyperparameters.label_smoothing
    losses = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
    rewards = scaled_pairs(split_pairs(log_ratios(batch), batch.preferred), hyperparameters.beta)
    return LossOutput(losses, pair_metrics(batch, rewards))
