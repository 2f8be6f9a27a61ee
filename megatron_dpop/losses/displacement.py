"""Variants of DPO that keep the chosen answer from losing probability, as DPOP does, by other means."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megatron_dpop.config.losses import BpoConfig, CalDpoConfig, DpoShiftConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, scaled_pairs, split_pairs


def cal_dpo_loss(batch: CompletionBatch, options: CalDpoConfig) -> LossOutput:
    """-log sigmoid(r(w) - r(l)) + (r(w) - 1/(2 beta))^2 + (r(l) + 1/(2 beta))^2, r = log pi/ref.

    Cal-DPO (Xiao et al. 2024, arXiv 2412.14516, equation 10). beta enters the targets alone: the paper's first
    term has none. The squares pull the chosen answer up to its target, whatever the margin.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    target = 0.5 / options.beta
    calibration = (ratios.chosen - target).square() + (ratios.rejected + target).square()
    losses = calibration - F.logsigmoid(ratios.chosen - ratios.rejected)
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, options.beta)))


def dpo_shift_loss(batch: CompletionBatch, options: DpoShiftConfig, *, progress: float = 0.0) -> LossOutput:
    """-log sigmoid(beta r(w) - f beta r(l)), r = log pi/ref (Yang et al. 2025, arXiv 2502.07599).

    f is `lambda`, or moves from `lambda` to `lambda_end` in proportion to `progress`, the share of the run's steps
    that were taken. Below 1 it weakens the push on the rejected answer, at the price of a smaller margin.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    start, end = options.lambda_, options.lambda_end
    factor = start if end is None else start + (end - start) * progress
    losses = -F.logsigmoid(options.beta * (ratios.chosen - factor * ratios.rejected))
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, options.beta)))


def bpo_loss(batch: CompletionBatch, options: BpoConfig) -> LossOutput:
    """-log sigmoid(min(beta r(w), -alpha beta r(l))), r = log pi/ref.

    Balanced Preference Optimization (Sun et al. 2025, arXiv 2506.03557). Only the side that lags behind has a
    gradient, so a falling chosen answer cannot be paid for by a rejected one that falls faster.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    balanced = torch.minimum(ratios.chosen, -options.alpha * ratios.rejected)
    losses = -F.logsigmoid(options.beta * balanced)
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, options.beta)))
