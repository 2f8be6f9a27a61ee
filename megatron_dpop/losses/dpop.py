"""DPO-Positive (Pal et al. 2024, arXiv 2402.13228, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from dpop_base.metric_names import ACTIVE_FRACTION, PENALTY
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.hyperparameters import choice, number
from megatron_dpop.losses.likelihood import PairHyperparameters
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, ratio_pairs, scaled_pairs, split_pairs


@dataclass(frozen=True)
class DpopHyperparameters(PairHyperparameters):
    """beta as in DPO; lambda_: weight of the penalty (config key `lambda`). The paper's 0.3 and 50.

    average: `tokens` divides each log-ratio, the penalty's too, by the completion's number of tokens.
    """

    beta: float = number(0.3, above=0)
    lambda_: float = number(50.0, key="lambda", at_least=0)
    average: str = choice("none", "tokens")


def dpop_loss(batch: CompletionBatch, hyperparameters: DpopHyperparameters) -> LossOutput:
    """-log sigmoid(beta (log pi(w)/ref(w) - log pi(l)/ref(l) - lambda max(0, log ref(w)/pi(w)))).

    The penalty is the log of a ratio (not a ratio of logs), of log-probabilities summed over the
    completion's tokens, inside the sigmoid and scaled by beta. At a ratio of exactly one it has no
    gradient: where policy and reference agree to the last bit, the first step is DPO's.

    Rewards are DPO's, beta log pi/ref without the penalty, so that runs of both losses compare.
    `dpop/penalty` is max(0, log ref(w)/pi(w)) in nats (nats a token where averaged), before lambda;
    `dpop/active_fraction` is the share of pairs where it is above zero.

    `average: tokens` is not in the paper: margin and penalty are then in nats a token, and want a larger beta, as
    length-normalised DPO does. Rewards stay those of sums.
    """
    ratios = ratio_pairs(batch, hyperparameters.average)
    penalty = F.relu(-ratios.chosen)
    z = hyperparameters.beta * (ratios.chosen - ratios.rejected - hyperparameters.lambda_ * penalty)
    summed = split_pairs(log_ratios(batch), batch.preferred)
    metrics = pair_metrics(batch, scaled_pairs(summed, hyperparameters.beta))
    metrics[PENALTY] = penalty.detach()
    metrics[ACTIVE_FRACTION] = (penalty.detach() > 0).to(penalty.dtype)
    return LossOutput(-F.logsigmoid(z), metrics)
