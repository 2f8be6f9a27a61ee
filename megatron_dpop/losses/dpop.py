"""DPO-Positive (Pal et al. 2024, arXiv 2402.13228, equation 3)."""

from __future__ import annotations

import torch.nn.functional as F

from dpop_base.metric_names import ACTIVE_FRACTION, PENALTY
from megatron_dpop.config.losses import DpopConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, ratio_pairs, scaled_pairs, split_pairs


def dpop_loss(batch: CompletionBatch, options: DpopConfig) -> LossOutput:
    """-log sigmoid(beta (log pi(w)/ref(w) - log pi(l)/ref(l) - lambda max(0, log ref(w)/pi(w)))).

    The penalty is the log of a ratio (not a ratio of logs), of log-probabilities summed over the
    completion's tokens, inside the sigmoid and scaled by beta. At a ratio of exactly one it has no
    gradient: where policy and reference agree to the last bit, the first step is DPO's.

    Rewards are DPO's, beta log pi/ref without the penalty, so that runs of both losses compare.
    `dpop/penalty` is max(0, log ref(w)/pi(w)) in nats (nats a token where averaged), before lambda;
    `dpop/active_fraction` is the share of pairs where it is above zero; `dpop/reward` is what the loss takes for the
    chosen answer's reward, beta (log pi/ref - lambda penalty).

    `average: tokens` is not in the paper: margin and penalty are then in nats a token, and want a larger beta, as
    length-normalised DPO does. Rewards stay those of sums.
    """
    ratios = ratio_pairs(batch, options.average)
    penalty = F.relu(-ratios.chosen)
    z = options.beta * (ratios.chosen - ratios.rejected - options.lambda_ * penalty)
    reward = options.beta * (ratios.chosen - options.lambda_ * penalty)
    summed = split_pairs(log_ratios(batch), batch.preferred)
    metrics = pair_metrics(batch, scaled_pairs(summed, options.beta))
    metrics[PENALTY] = penalty.detach()
    metrics[ACTIVE_FRACTION] = (penalty.detach() > 0).to(penalty.dtype)
    metrics["dpop/reward"] = reward.detach()
    return LossOutput(-F.logsigmoid(z), metrics)
