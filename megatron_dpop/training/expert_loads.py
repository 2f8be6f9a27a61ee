"""How evenly the tokens of a step are shared out among the experts of each layer, and the routers' own losses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dpop_base.architectures import Architecture
from dpop_base.metric_names import BALANCE_LOSS, LOAD_BALANCE, Z_LOSS
from megatron_dpop.engine.batches import RowBatch
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


def router_losses(engine: ModelEngine, rows: Sequence[RowBatch]) -> Tensor | None:
    """fp64 [layers, 2]: this rank's part of each layer's balance and z loss, over rows with gradients; None without."""
    of_rows = [row.layout.examples.losses for row in rows if row.layout.examples is not None]
    if not of_rows:
        return None
    losses = torch.zeros(engine.architecture.num_layers, 2, dtype=torch.float64, device=engine.device)
    for layer in of_rows[0]:
        losses[layer] = torch.stack([of_row[layer] for of_row in of_rows]).double().sum(0)
    return losses


def router_loss_metrics(losses: Sequence[float], architecture: Architecture) -> dict[str, float]:
    """Means over layers with experts, before their weights; empty where there are none. losses: [layers * 2]."""
    layers = architecture.mixtures_among(range(architecture.num_layers))
    if not any(losses):
        return {}
    return {BALANCE_LOSS: sum(losses[::2]) / layers, Z_LOSS: sum(losses[1::2]) / layers}
