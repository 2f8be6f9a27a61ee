"""The layer spec: Transformer Engine's modules on a GPU, Megatron-Core's own elsewhere, our attention in both."""

import copy
from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_submodules,
    get_gpt_layer_with_transformer_engine_submodules,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, get_transformer_layer_offset

from dpop_base.architectures import Architecture
from megatron_dpop.models.attention import TreeAttention
from megatron_dpop.models.experts import set_experts
from megatron_dpop.models.gate import GatedSilu
from megatron_dpop.models.gelu import GatedGelu
from megatron_dpop.models.norm import RMSNorm
from megatron_dpop.models.residual import set_residuals

GATES = {"silu": GatedSilu, "gelu_tanh": GatedGelu}


def block_spec(
    config: TransformerConfig, architecture: Architecture, *, transformer_engine: bool, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of one of its interleaved chunks, and the final norm."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    kinds: dict[bool, ModuleSpec] = {}
    specs = []
    for layer in range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage)):
        has_experts = architecture.has_experts(layer)
        if has_experts not in kinds:
            kinds[has_experts] = _layer_spec(config, architecture, has_experts, transformer_engine=transformer_engine)
        specs.append(kinds[has_experts])
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=_norm(transformer_engine=transformer_engine))


def _norm(*, transformer_engine: bool) -> Any:
    if not transformer_engine:
        return RMSNorm
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm


def _layer_spec(
    config: TransformerConfig, architecture: Architecture, has_experts: bool, *, transformer_engine: bool
) -> ModuleSpec:
    norm = _norm(transformer_engine=transformer_engine)
    options = (
        {"num_experts": config.num_moe_experts, "moe_grouped_gemm": config.moe_grouped_gemm} if has_experts else {}
    )
    if transformer_engine:
        layer = get_gpt_layer_with_transformer_engine_submodules(qk_layernorm=architecture.qk_norm, **options)
    else:
        layer = get_gpt_layer_local_submodules(qk_layernorm=architecture.qk_norm, normalization="RMSNorm", **options)
        layer.input_layernorm = layer.pre_mlp_layernorm = norm
        if architecture.qk_norm:
            layer.self_attention.submodules.q_layernorm = norm
            layer.self_attention.submodules.k_layernorm = norm
    attention = layer.self_attention.submodules
    attention.core_attention = partial(TreeAttention, architecture=architecture)
    if has_experts:
        set_experts(layer, GATES[architecture.activation])
    else:
        layer.mlp.keywords["submodules"].activation_func = GATES[architecture.activation]
    if architecture.attention_output_bias:
        attention.linear_proj = partial(_with_bias, attention.linear_proj)
    set_residuals(layer, config, architecture, norm)
    if transformer_engine and config.fused_weight_gradients:
        for part in (attention, layer.mlp.keywords["submodules"]):
            for name in ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"):
                if linear := getattr(part, name, None):
                    setattr(part, name, partial(_with_fused_weight_gradient, linear))
    return ModuleSpec(module=TransformerLayer, submodules=layer)


def _with_bias(linear: Any, *sizes: Any, **options: Any) -> Any:
    """Megatron's one switch for biases (`add_bias_linear`) would also add them to the feed-forward."""
    return linear(*sizes, **{**options, "bias": True})


def _with_fused_weight_gradient(linear: Any, *sizes: Any, config: Any, **options: Any) -> Any:
    """Megatron's one switch for it is also the output layer's, which is no module of Transformer Engine's."""
    fusing = copy.copy(config)
    fusing.gradient_accumulation_fusion = True
    return linear(*sizes, config=fusing, **options)
