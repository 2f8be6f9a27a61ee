"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equations 7 and 8)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dpop_base.metric_names import CHOSEN_LOGP, CHOSEN_MINUS_REFERENCE, CHOSEN_REWARD, REJECTED_LOGP, REJECTED_REWARD
from megatron_dpop.config.losses import KtoConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios


def kl_estimate(log_ratios: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The paper's z_0: max(0, mean of log pi(y'|x)/ref(y'|x)) over mismatched prompts x and completions y'.

    Args:
        log_ratios: [completions] of this rank, any number, in nats, summed over tokens.
        group: data-parallel group over which the mean is taken; None for one rank.

    Returns:
        detached fp32 scalar, the same on every rank of the group; zero for no completions, and not finite where
        a log-ratio of any rank is not (a -inf is no zero).
    """
    total = torch.stack([log_ratios.detach().double().sum(), log_ratios.new_tensor(log_ratios.numel()).double()])
    if group is not None:
        dist.all_reduce(total, group=group)
    mean = total[0] / total[1].clamp(min=1)
    return torch.where(mean.isfinite(), mean.clamp(min=0), mean).float()


def kto_loss(batch: CompletionBatch, options: KtoConfig, *, kl: Tensor) -> LossOutput:
    """w_D (1 - sigmoid(beta (r - kl))) for a chosen completion, w_U (1 - sigmoid(beta (kl - r))) else.

    r = log pi/ref of the completion, summed over tokens; kl: scalar from `kl_estimate`, no gradient. The
    reward is beta r. Metrics of a side count that side's completions only; rewards/margins and
    rewards/accuracies need pairs and are absent.
    """
    assert batch.logps.numel() == batch.num_examples, "a KTO example has exactly one completion"
    ratios = log_ratios(batch)
    sign = torch.where(batch.preferred, 1.0, -1.0).to(ratios.dtype)
    weight = torch.where(batch.preferred, options.desirable_weight, options.undesirable_weight).to(ratios.dtype)
    # sigmoid(-x) and not 1 - sigmoid(x), which rounds small losses to zero.
    losses = weight * torch.sigmoid(-options.beta * sign * (ratios - kl.detach()))
    rewards = options.beta * ratios.detach()
    logps, preferred = batch.logps.detach(), batch.preferred
    metrics = {
        CHOSEN_REWARD: rewards[preferred],
        REJECTED_REWARD: rewards[~preferred],
        CHOSEN_LOGP: logps[preferred],
        REJECTED_LOGP: logps[~preferred],
        CHOSEN_MINUS_REFERENCE: ratios.detach()[preferred],
        "kto/kl": kl.detach().expand(batch.num_examples),
    }
    return LossOutput(losses, metrics)
