"""Identity Preference Optimization (Azar et al. 2023, arXiv 2310.12036, equation 17)."""

from __future__ import annotations

from megatron_dpop.config.losses import IpoConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, mean_pairs, pair_metrics, scaled_pairs, split_pairs


def ipo_loss(batch: CompletionBatch, options: IpoConfig) -> LossOutput:
    """(h - 1 / (2 beta))^2 with h = log pi(w)/ref(w) - log pi(l)/ref(l).

    The paper's pi(y) is the probability of the whole answer, so token log-probabilities are summed.
    `reduction: mean` averages them over each completion's tokens (what TRL calls IPO).
    The reward of a completion is beta log pi/ref, summed under either reduction as TRL reports it, so that
    runs of several losses compare.
    """
    ratios = log_ratios(batch)
    average = options.reduction == "mean"
    pairs = mean_pairs(batch, ratios) if average else split_pairs(ratios, batch.preferred)
    losses = (pairs.chosen - pairs.rejected - 1 / (2 * options.beta)).square()
    rewards = scaled_pairs(split_pairs(ratios, batch.preferred), options.beta)
    return LossOutput(losses, pair_metrics(batch, rewards))
