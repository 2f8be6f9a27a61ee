"""How evenly the tokens of a step are shared out among the experts of each layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dpop_base.architectures import Architecture
from dpop_base.metric_names import LOAD_BALANCE
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.models.experts import Router


def take_loads(engine: ModelEngine) -> Tensor | None:
    """fp64 [layers * experts]: this rank's tokens of each expert since the last call; None without experts.

    Every rank routes tokens of its own, so the sum over all ranks is that of the step.
    """
    experts = engine.architecture.experts
    if experts is None:
        return None
    loads = torch.zeros(engine.architecture.num_layers, experts.count, dtype=torch.float64, device=engine.device)
    for module in engine.modules:
        for layer in module.decoder.layers:
            router = getattr(layer.mlp, "router", None)
            if isinstance(router, Router) and (assigned := router.take_assigned()) is not None:
                loads[layer.layer_number - 1] = assigned
    return loads.flatten()


def load_metrics(loads: Sequence[float], architecture: Architecture) -> dict[str, float]:
    """Tokens of the busiest expert over the mean of all, of each layer and the largest; empty where none was counted.

    loads: [layers * experts], of all ranks.
    """
    experts = architecture.experts
    if experts is None or not any(loads):
        return {}
    found = {}
    for layer in range(architecture.num_layers):
        if architecture.has_experts(layer):
            tokens = loads[layer * experts.count : (layer + 1) * experts.count]
            found[f"{LOAD_BALANCE}/{layer}"] = max(tokens) * experts.count / sum(tokens)
    return {LOAD_BALANCE: max(found.values()), **found}
