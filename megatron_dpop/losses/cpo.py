"""Contrastive Preference Optimization (Xu et al. 2024, arXiv 2401.08417)."""

from __future__ import annotations

import torch.nn.functional as F

from megatron_dpop.config.losses import CpoConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import mean_pairs, pair_metrics, policy_pairs, scaled_pairs


def cpo_loss(batch: CompletionBatch, options: CpoConfig) -> LossOutput:
    """-log sigmoid(beta (log pi(w) - log pi(l))) - nll_weight log pi(w), without a reference model.

    label_smoothing enters the first term as in DPO. The paper's likelihood term is of the whole answer, so
    token log-probabilities are summed; its authors' code, like TRL, averages them: `nll_reduction: mean`.
    The reward of a completion is beta log pi. `cpo/nll` is the likelihood term before its weight.
    """
    policy = policy_pairs(batch)
    z = options.beta * (policy.chosen - policy.rejected)
    smoothing = options.label_smoothing
    preference = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
    average = options.nll_reduction == "mean"
    nll = -(mean_pairs(batch, batch.logps) if average else policy).chosen
    metrics = pair_metrics(batch, scaled_pairs(policy, options.beta))
    metrics["cpo/nll"] = nll.detach()
    return LossOutput(preference + options.nll_weight * nll, metrics)
