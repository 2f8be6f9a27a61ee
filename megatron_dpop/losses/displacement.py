"""Variants of DPO that keep the chosen answer from losing probability, as DPOP does, by other means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.hyperparameters import number
from megatron_dpop.losses.likelihood import PairHyperparameters
from megatron_dpop.losses.pairs import log_ratios, pair_metrics, scaled_pairs, split_pairs


@dataclass(frozen=True)
class CalDpoHyperparameters(PairHyperparameters):
    """beta: the targets of the two log-ratios lie 1 / (2 beta) nats above and below the reference."""

    beta: float = number(0.1, above=0)


@dataclass(frozen=True)
class DpoShiftHyperparameters(PairHyperparameters):
    """lambda_: factor of the rejected reward (config key `lambda`; 1 is DPO); lambda_end: its value after the last
    step, linear in between, or none for a constant factor.
    """

    beta: float = number(0.1, above=0)
    lambda_: float = number(0.75, key="lambda", above=0, at_most=1)
    lambda_end: float | None = number(None, above=0, at_most=1)


@dataclass(frozen=True)
class BpoHyperparameters(PairHyperparameters):
    """alpha: factor of the rejected reward, the paper's gap adaptor."""

    beta: float = number(0.1, above=0)
    alpha: float = number(1.0, above=0, at_most=1)


def cal_dpo_loss(batch: CompletionBatch, hyperparameters: CalDpoHyperparameters) -> LossOutput:
    """-log sigmoid(r(w) - r(l)) + (r(w) - 1/(2 beta))^2 + (r(l) + 1/(2 beta))^2, r = log pi/ref.

    Cal-DPO (Xiao et al. 2024, arXiv 2412.14516, equation 10). beta enters the targets alone: the paper's first
    term has none. The squares pull the chosen answer up to its target, whatever the margin.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    target = 0.5 / hyperparameters.beta
    calibration = (ratios.chosen - target).square() + (ratios.rejected + target).square()
    losses = calibration - F.logsigmoid(ratios.chosen - ratios.rejected)
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, hyperparameters.beta)))


def dpo_shift_loss(
    batch: CompletionBatch, hyperparameters: DpoShiftHyperparameters, *, progress: float = 0.0
) -> LossOutput:
    """-log sigmoid(beta r(w) - f beta r(l)), r = log pi/ref (Yang et al. 2025, arXiv 2502.07599).

    f is `lambda`, or moves from `lambda` to `lambda_end` in proportion to `progress`, the share of the run's steps
    that were taken. Below 1 it weakens the push on the rejected answer, at the price of a smaller margin.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    start, end = hyperparameters.lambda_, hyperparameters.lambda_end
    factor = start if end is None else start + (end - start) * progress
    losses = -F.logsigmoid(hyperparameters.beta * (ratios.chosen - factor * ratios.rejected))
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, hyperparameters.beta)))


def bpo_loss(batch: CompletionBatch, hyperparameters: BpoHyperparameters) -> LossOutput:
    """-log sigmoid(min(beta r(w), -alpha beta r(l))), r = log pi/ref.

    Balanced Preference Optimization (Sun et al. 2025, arXiv 2506.03557). Only the side that lags behind has a
    gradient, so a falling chosen answer cannot be paid for by a rejected one that falls faster.
    """
    ratios = split_pairs(log_ratios(batch), batch.preferred)
    balanced = torch.minimum(ratios.chosen, -hyperparameters.alpha * ratios.rejected)
    losses = -F.logsigmoid(hyperparameters.beta * balanced)
    return LossOutput(losses, pair_metrics(batch, scaled_pairs(ratios, hyperparameters.beta)))
