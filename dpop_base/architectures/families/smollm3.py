"""SmolLM3: Llama without rotary positions on some layers, by default on every fourth."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import FULL, NO_MLP_BIAS, SILU, SLIDING, decoder, layer_types, windows
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields


def _build(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    rotated = _rotated(fields)
    window = fields.integer_or_none("sliding_window") if fields.flag("use_sliding_window") else None
    fields.seen.add("sliding_window")
    default = [SLIDING if window is not None and not rotates else FULL for rotates in rotated]
    return decoder(
        fields,
        family="smollm3",
        qkv_bias=bias,
        attention_output_bias=bias,
        unrotated_layers=tuple(layer for layer, rotates in enumerate(rotated) if not rotates),
        **windows(fields, layer_types(fields, default), window),
    )


def _rotated(fields: Fields) -> list[bool]:
    """Tells which layers have rotary positions: `no_rope_layers` holds 1 for those that have them."""
    layers = fields.integer("num_hidden_layers")
    every = fields.integer("no_rope_layer_interval")
    flags = fields.get("no_rope_layers")
    if flags is None:
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or not set(flags) <= {0, 1}:
        raise fields.error(f"no_rope_layers is {flags!r} for {layers} layers", "it must say 1 or 0 of each layer")
    return [bool(flag) for flag in flags[:layers]]


SMOLLM3 = Family(
    model_type="smollm3",
    model_classes=("SmolLM3ForCausalLM",),
    config_class="SmolLM3Config",
    default_theta=2_000_000.0,
    defaults={
        **DEFAULTS,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    only={"hidden_act": SILU, "mlp_bias": NO_MLP_BIAS},
    harmless=frozenset({"max_window_layers"}),  # Qwen's, which SmolLM3 does not read
    build=_build,
)
