"""Seed-OSS: Llama with biases of q, k and v."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import NO_MLP_BIAS, SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields


def _build(fields: Fields) -> Architecture:
    return decoder(
        fields,
        family="seed_oss",
        qkv_bias=fields.flag("attention_bias"),
        attention_output_bias=fields.flag("attention_out_bias"),
    )


SEED_OSS = Family(
    model_type="seed_oss",
    model_classes=("SeedOssForCausalLM",),
    config_class="SeedOssConfig",
    defaults={
        **DEFAULTS,
        "vocab_size": 155136,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    only={"hidden_act": SILU, "mlp_bias": NO_MLP_BIAS},
    # 0.1 in the published configs: of pretraining. Training here is without, so that policy and reference agree.
    harmless=frozenset({"attention_dropout", "residual_dropout"}),
    build=_build,
)
