"""Qwen1.5, Qwen2 and Qwen2.5 (`qwen2`), and Qwen3 dense."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder, windows_of_late_layers
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _qwen2(fields: Fields) -> Architecture:
    return decoder(fields, family="qwen2", qkv_bias=True, **windows_of_late_layers(fields))


def _qwen3(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    return decoder(
        fields,
        family="qwen3",
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        head_dim=fields.integer("head_dim"),
        **windows_of_late_layers(fields),
    )


_SHARED = {
    **DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "attention_dropout": 0.0,
}
_NO_BIAS = Only((False,), "Qwen's feed-forward has no biases")

QWEN2 = Family(
    model_type="qwen2",
    model_classes=("Qwen2ForCausalLM",),
    config_class="Qwen2Config",
    defaults={**_SHARED, "head_dim": None},
    only={"hidden_act": SILU, "mlp_bias": _NO_BIAS},
    # transformers' Qwen2 has biases of q, k and v whatever these say.
    harmless=frozenset({"attention_bias", "qkv_bias", "use_qkv_bias"}),
    build=_qwen2,
)
QWEN3 = Family(
    model_type="qwen3",
    model_classes=("Qwen3ForCausalLM",),
    config_class="Qwen3Config",
    defaults={**_SHARED, "head_dim": 128, "attention_bias": False},
    only={
        "hidden_act": SILU,
        "mlp_bias": _NO_BIAS,
        "use_qk_norm": Only((True,), "Qwen3 normalises queries and keys"),
        "qk_layernorm": Only((True,), "Qwen3 normalises queries and keys"),
    },
    build=_qwen3,
)
