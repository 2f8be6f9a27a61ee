"""What a loss reports, by name."""

from collections.abc import Sequence

import torch

from dpop_base.metric_names import LOSS, SOURCE, VALIDATION
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.registry import Loss


def metric_names(loss: Loss) -> list[str]:
    """Names that a loss reports, in order: asked of the loss itself, on one made-up example."""
    sequences = 2 if loss.kind in ("pair", "group") else 1
    zeros = torch.zeros(sequences)
    batch = CompletionBatch(
        logps=zeros,
        reference_logps=zeros if loss.needs_reference else None,
        lengths=torch.ones(sequences, dtype=torch.int64),
        example=torch.zeros(sequences, dtype=torch.int64),
        preferred=torch.arange(sequences) == 0,
        num_examples=1,
    )
    return [LOSS, *loss(batch, kl=torch.zeros(()) if loss.needs_kl else None).metrics]


def validation_names(loss: Loss, sources: Sequence[str]) -> list[str]:
    """Names of a validation's metrics; of several sources each has its own besides those of all."""
    prefixes = ["", *(f"{SOURCE}{name}/" for name in sources if len(sources) > 1)]
    return [VALIDATION + prefix + name for prefix in prefixes for name in metric_names(loss)]
