"""How a layer's two halves are added to what came in, where it is more than a sum.

Gemma 3 and GLM-4 normalise what a half gives, Granite multiplies it. Megatron-Core has one replaceable place after each
half (`self_attn_bda`, `mlp_bda`); standing there, the norm sees what LoRA has added to the half's last linear layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from dpop_base.architectures import Architecture

Halves = tuple[Tensor, Tensor | None]  # what a half gives, and a bias that is to be added to it

# In a checkpoint the norms have the names that Megatron-Bridge gives them.
NORM_KEYS = {
    "self_attn_bda.norm.": "self_attention.linear_proj.post_layernorm.",
    "mlp_bda.norm.": "mlp.linear_fc2.post_layernorm.",
}


class Residual(torch.nn.Module):
    """residual + multiplier * norm(half)."""

    def __init__(self, norm: Callable[..., torch.nn.Module] | None, config: TransformerConfig, multiplier: float):
        super().__init__()
        self.norm = norm and norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
        self.multiplier = multiplier

    def forward(self, training: bool, fused: bool) -> Callable[[Halves, Tensor, float], Tensor]:
        """Megatron asks first for the function; there is no dropout."""
        return self._add

    def _add(self, half: Halves, residual: Tensor, dropout: float) -> Tensor:
        states, bias = half
        if bias is not None:
            states = states + bias
        if self.norm is not None:
            states = self.norm(states)
        return residual.add(states, alpha=self.multiplier)


def set_residuals(
    layer: TransformerLayerSubmodules, config: TransformerConfig, architecture: Architecture, norm: Any
) -> None:
    """Replaces Megatron's sums in a layer's spec where the architecture needs more."""
    if not architecture.post_norms and architecture.residual_multiplier == 1.0:
        return
    params = {
        "norm": norm if architecture.post_norms else None,
        "config": config,
        "multiplier": architecture.residual_multiplier,
    }
    layer.self_attn_bda = ModuleSpec(module=Residual, params=params)
    layer.mlp_bda = ModuleSpec(module=Residual, params=params)
    if architecture.post_norms:
        layer.sharded_state_dict_keys_map = {**layer.sharded_state_dict_keys_map, **NORM_KEYS}
