"""What all pair losses share: the chosen and rejected side of a batch, implicit rewards, metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpop_base.metric_names import (
    ACCURACY,
    CHOSEN_LOGP,
    CHOSEN_MINUS_REFERENCE,
    CHOSEN_REWARD,
    MARGIN,
    REJECTED_LOGP,
    REJECTED_REWARD,
)
from megatron_dpop.losses.contract import CompletionBatch


@dataclass(frozen=True)
class Pairs:
    """Chosen and rejected log-probabilities, each [pairs]."""

    chosen: Tensor
    rejected: Tensor


def split_pairs(values: Tensor, preferred: Tensor) -> Pairs:
    """Splits [2 * pairs] values, sorted by pair, into the chosen and the rejected one.

    A selection by `where` and not by a boolean index, which would wait for the device.
    """
    first, second = values.view(-1, 2).unbind(1)
    first_is_chosen = preferred.view(-1, 2)[:, 0]
    chosen = torch.where(first_is_chosen, first, second)
    rejected = torch.where(first_is_chosen, second, first)
    return Pairs(chosen=chosen, rejected=rejected)


def policy_pairs(batch: CompletionBatch) -> Pairs:
    """The policy's log-probabilities, summed over tokens."""
    assert batch.logps.numel() == 2 * batch.num_examples, "a pair has exactly two completions"
    return split_pairs(batch.logps, batch.preferred)


def mean_pairs(batch: CompletionBatch, values: Tensor) -> Pairs:
    """`values` ([sequences] sums over tokens) averaged over each completion's scored tokens."""
    return split_pairs(values / batch.lengths, batch.preferred)


def log_ratios(batch: CompletionBatch) -> Tensor:
    """log pi(y|x) - log ref(y|x), [sequences]."""
    assert batch.reference_logps is not None, "this loss needs reference log-probabilities"
    return batch.logps - batch.reference_logps


def ratio_pairs(batch: CompletionBatch, average: str) -> Pairs:
    """Returns log pi/ref of both sides: summed over tokens, or for `average` "tokens" divided by their number."""
    ratios = log_ratios(batch)
    return mean_pairs(batch, ratios) if average == "tokens" else split_pairs(ratios, batch.preferred)


def pair_metrics(batch: CompletionBatch, rewards: Pairs) -> dict[str, Tensor]:
    """TRL's metrics, one value per pair; those that need a reference are left out where there is none."""
    policy = policy_pairs(batch)
    margins = rewards.chosen - rewards.rejected
    metrics = {
        CHOSEN_REWARD: rewards.chosen,
        REJECTED_REWARD: rewards.rejected,
        MARGIN: margins,
        ACCURACY: (margins > 0).to(margins.dtype),
        CHOSEN_LOGP: policy.chosen,
        REJECTED_LOGP: policy.rejected,
    }
    if batch.reference_logps is not None:
        metrics[CHOSEN_MINUS_REFERENCE] = split_pairs(log_ratios(batch), batch.preferred).chosen
    return {name: value.detach() for name, value in metrics.items()}


def scaled_pairs(pairs: Pairs, scale: float) -> Pairs:
    """Both sides times `scale`, detached: rewards are reported, never trained on."""
    return Pairs(chosen=scale * pairs.chosen.detach(), rejected=scale * pairs.rejected.detach())
