"""Qwen1.5-MoE and Qwen2-57B-A14B (`qwen2_moe`), Qwen3-30B-A3B and 235B-A22B (`qwen3_moe`)."""

from dpop_base.architectures.architecture import Architecture, Experts
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import FULL, SILU, decoder
from dpop_base.architectures.experts import OF_TRAINING, read_experts
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _qwen2_moe(fields: Fields) -> Architecture:
    if fields.get("layer_types") not in (None, [FULL] * fields.integer("num_hidden_layers")):
        raise fields.error("layer_types has layers that slide a window", "only full attention is supported")
    shared = fields.integer("shared_expert_intermediate_size")
    experts = _experts(fields, count=fields.integer("num_experts"), shared_ffn_hidden_size=shared)
    return decoder(fields, family="qwen2_moe", qkv_bias=fields.flag("qkv_bias"), experts=experts)


def _qwen3_moe(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    experts = _experts(fields, count=_number_of_experts(fields), shared_ffn_hidden_size=None)
    return decoder(fields, family="qwen3_moe", qkv_bias=bias, attention_output_bias=bias, qk_norm=True, experts=experts)


def _experts(fields: Fields, *, count: int, shared_ffn_hidden_size: int | None) -> Experts | None:
    return read_experts(
        fields,
        count=count,
        ffn_hidden_size=fields.integer("moe_intermediate_size"),
        shares_sum_to_one=fields.flag("norm_topk_prob"),
        shared_ffn_hidden_size=shared_ffn_hidden_size,
    )


def _number_of_experts(fields: Fields) -> int:
    """transformers 5 saves a Qwen3's `num_experts` as `num_local_experts`, and reads either."""
    spelt = {name: fields.integer(name) for name in ("num_experts", "num_local_experts") if name in fields.values}
    if len(set(spelt.values())) > 1:
        raise fields.error(f"num_experts and num_local_experts differ ({spelt})", "they are two names of one number")
    return next(iter(spelt.values()), fields.integer("num_experts"))


_SHARED = {
    **DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}
_ONLY = {
    "hidden_act": SILU,
    "mlp_bias": Only((False,), "Qwen's experts have no biases"),
    "use_sliding_window": Only((False,), "attention sees all earlier tokens"),
}
# Of a window that does not slide.
_HARMLESS = OF_TRAINING | {"sliding_window", "max_window_layers"}

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    model_classes=("Qwen2MoeForCausalLM",),
    config_class="Qwen2MoeConfig",
    defaults={
        **_SHARED,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "qkv_bias": True,
        "layer_types": None,
    },
    only=_ONLY,
    harmless=_HARMLESS,
    build=_qwen2_moe,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    model_classes=("Qwen3MoeForCausalLM",),
    config_class="Qwen3MoeConfig",
    defaults={
        **_SHARED,
        "intermediate_size": 6144,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "attention_bias": False,
    },
    only=_ONLY,
    harmless=_HARMLESS,
    build=_qwen3_moe,
)
