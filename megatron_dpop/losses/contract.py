"""What a loss receives and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class CompletionBatch:
    """The completions of one microbatch, sorted by example."""

    logps: Tensor
    """fp32 [sequences], the policy's log-probability summed over scored tokens by their weights, differentiable."""
    reference_logps: Tensor | None
    """fp32 [sequences], the same sum under the reference model; None for losses that need none."""
    lengths: Tensor
    """int64 [sequences], scored tokens."""
    example: Tensor
    """int64 [sequences], index of the example within the batch, ascending."""
    preferred: Tensor
    """bool [sequences]."""
    num_examples: int
    """Pairs, unpaired completions (single, sft) or groups."""


@dataclass(frozen=True)
class LossOutput:
    """Per-example losses; whoever calls the loss normalises, once, by the step's number of examples."""

    losses: Tensor
    """fp32 [examples], differentiable."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Name -> detached 1-D tensor with one value per item; a step reports sum / count over all its items."""
