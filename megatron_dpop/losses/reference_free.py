"""Losses of average token log-probabilities that need no reference model: SimPO and ORPO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_dpop.config.losses import OrpoConfig, SimpoConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.likelihood import NLL
from megatron_dpop.losses.pairs import mean_pairs, pair_metrics, scaled_pairs

_CERTAIN = -1e-7  # nats a token: odds of a more certain answer have no finite fp32 logarithm


def simpo_loss(batch: CompletionBatch, options: SimpoConfig) -> LossOutput:
    """-log sigmoid(beta (s(w) - s(l)) - gamma), s = log pi(y) / tokens(y) (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    label_smoothing enters as in DPO. The reward of a completion is beta s, the quantity that it generates by.
    TRL's `simpo_gamma` is this gamma.
    """
    means = mean_pairs(batch, batch.logps)
    z = options.beta * (means.chosen - means.rejected) - options.gamma
    smoothing = options.label_smoothing
    losses = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(means, options.beta)))


def orpo_loss(batch: CompletionBatch, options: OrpoConfig) -> LossOutput:
    """-s(w) - beta log sigmoid(log odds(w)/odds(l)), s = log pi(y) / tokens(y), odds = e^s / (1 - e^s).

    ORPO (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7): supervised fine-tuning on the chosen answer and
    a preference in one. TRL's likelihood term also covers the prompt's tokens; the paper's, and this one, does not.
    The reward of a completion is beta s.
    """
    means = mean_pairs(batch, batch.logps)
    log_odds = _log_odds(means.chosen) - _log_odds(means.rejected)
    losses = -means.chosen - options.beta * F.logsigmoid(log_odds)
    metrics = pair_metrics(batch, scaled_pairs(means, options.beta))
    metrics[NLL] = -means.chosen.detach()
    return LossOutput(losses, metrics)


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p <= 0, without forming 1 - p where p is close to one."""
    logps = mean_logps.clamp(max=_CERTAIN)
    return logps - torch.where(logps > -0.6931, (-torch.expm1(logps)).log(), torch.log1p(-logps.exp()))
