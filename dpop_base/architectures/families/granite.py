"""Granite dense: Llama with multipliers of embeddings, attention scores, residuals and logits."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import NO_MLP_BIAS, SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields


def _build(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    return decoder(
        fields,
        family="granite",
        qkv_bias=bias,
        attention_output_bias=bias,
        attention_scale=fields.number("attention_multiplier"),
        embedding_multiplier=fields.number("embedding_multiplier"),
        residual_multiplier=fields.number("residual_multiplier"),
        logits_divisor=fields.number("logits_scaling"),
    )


_MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")

GRANITE = Family(
    model_type="granite",
    model_classes=("GraniteForCausalLM",),
    config_class="GraniteConfig",
    defaults={
        **DEFAULTS,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        **dict.fromkeys(_MULTIPLIERS, 1.0),
    },
    only={"hidden_act": SILU, "mlp_bias": NO_MLP_BIAS},
    # 0.1 in some published configs: of pretraining. Training here is without, so that policy and reference agree.
    harmless=frozenset({"attention_dropout"}),
    own=frozenset(_MULTIPLIERS),
    build=_build,
)
