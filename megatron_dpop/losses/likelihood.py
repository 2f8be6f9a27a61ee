"""The likelihood of the chosen answer as a second term, on any pair loss (RPO: Pang et al. 2024, arXiv 2404.19733)."""

from __future__ import annotations

from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.pairs import mean_pairs

NLL = "nll_loss"


def add_chosen_likelihood(output: LossOutput, batch: CompletionBatch, weight: float) -> LossOutput:
    """Adds -weight log pi(w) / tokens(w) to each pair's loss, and the metric `nll_loss`, the term before its weight.

    The term is the mean over one chosen answer's tokens, and the step's loss is the mean over pairs, as the
    paper's equation has it. TRL's `rpo_alpha` averages over all chosen tokens of a micro-batch: the same for one
    pair at once, while with more of them its long answers weigh more.
    """
    nll = -mean_pairs(batch, batch.logps).chosen
    return LossOutput(output.losses + weight * nll, {**output.metrics, NLL: nll.detach()})
