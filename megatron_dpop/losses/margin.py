"""Other functions of DPO's margin: for labels that may be wrong, and one that was found by search."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from megatron_dpop.config.losses import DiscoPopConfig, ExoConfig, RobustConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, scaled_pairs, split_pairs


def robust_loss(batch: CompletionBatch, options: RobustConfig) -> LossOutput:
    """(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2 e), z = beta (r(w) - r(l)), e = label_smoothing.

    Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, equation 12): its mean over randomly swapped labels is
    DPO's loss of the right ones.
    """
    z, metrics = _margin(batch, options.beta)
    smoothing = options.label_smoothing
    losses = (-(1 - smoothing) * F.logsigmoid(z) + smoothing * F.logsigmoid(-z)) / (1 - 2 * smoothing)
    return LossOutput(losses, metrics)


def exo_loss(batch: CompletionBatch, options: ExoConfig) -> LossOutput:
    """KL of (sigmoid(z), sigmoid(-z)) from (1 - e, e), z = beta (r(w) - r(l)), e = label_smoothing.

    EXO for pairs (Ji et al. 2024, arXiv 2402.00856, equation 16): the reverse of the KL that DPO minimises, which
    settles on one mode of the target.
    """
    z, metrics = _margin(batch, options.beta)
    smoothing = options.label_smoothing
    chosen = z.sigmoid() * (F.logsigmoid(z) - math.log1p(-smoothing))
    rejected = (-z).sigmoid() * (F.logsigmoid(-z) - math.log(smoothing))
    return LossOutput(chosen + rejected, metrics)


def discopop_loss(batch: CompletionBatch, options: DiscoPopConfig) -> LossOutput:
    """-log sigmoid(z) (1 - m) + exp(-z) m with m = sigmoid(z / tau), z = beta (r(w) - r(l)).

    DiscoPOP (Lu et al. 2024, arXiv 2406.08414, equation 5), a loss that a language model proposed: logistic for
    pairs that are ordered wrongly, exponential for the others.
    """
    z, metrics = _margin(batch, options.beta)
    scaled = z / options.tau
    # The product of exp(-z) and the blend is formed from logarithms: exp(-z) alone overflows.
    losses = -F.logsigmoid(z) * (-scaled).sigmoid() + (F.logsigmoid(scaled) - z).exp()
    return LossOutput(losses, metrics)


def _margin(batch: CompletionBatch, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """beta (log pi(w)/ref(w) - log pi(l)/ref(l)), [pairs], and DPO's metrics."""
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    return beta * (ratios.chosen - ratios.rejected), pair_metrics(batch, scaled_pairs(ratios, beta))
