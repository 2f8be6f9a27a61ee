"""Supervised fine-tuning: the negative log-likelihood of a completion."""

from __future__ import annotations

from dpop_base.metric_names import CHOSEN_LOGP
from megatron_dpop.config.losses import SftConfig
from megatron_dpop.losses.contract import CompletionBatch, LossOutput


def sft_loss(batch: CompletionBatch, options: SftConfig) -> LossOutput:
    """-log pi(y|x) / tokens(y), or without the division for `reduction: sum`.

    The step's loss is a mean over examples: a short answer weighs as much as a long one.
    """
    assert batch.logps.numel() == batch.num_examples, "an SFT example has exactly one completion"
    per_token = -batch.logps / batch.lengths
    losses = per_token if options.reduction == "mean" else -batch.logps
    metrics = {CHOSEN_LOGP: batch.logps.detach(), "sft/nll_per_token": per_token.detach()}
    return LossOutput(losses, metrics)
