"""Llama 1 to 3, Yi, SmolLM2, and many others that are stored as Llama."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only

_NO_WINDOW = Only((False,), "Llama's attention has no window")


def _build(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    return decoder(fields, family="llama", qkv_bias=bias, attention_output_bias=bias)


LLAMA = Family(
    model_type="llama",
    model_classes=("LlamaForCausalLM", "LLaMAForCausalLM"),  # the latter is how the first conversions spelled it
    config_class="LlamaConfig",
    defaults={
        **DEFAULTS,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    only={
        "hidden_act": SILU,
        "mlp_bias": Only((False,), "Megatron-Core's gated feed-forward would need biases of its own"),
        "use_sliding_window": _NO_WINDOW,
        "sliding_window": _NO_WINDOW,
    },
    harmless=frozenset({"max_window_layers"}),  # Qwen's, in configs that were rewritten as Llama
    build=_build,
)
