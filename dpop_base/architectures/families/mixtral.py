"""Mixtral 8x7B and 8x22B."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.experts import OF_TRAINING, read_experts
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _build(fields: Fields) -> Architecture:
    ffn = fields.integer("intermediate_size")
    experts = read_experts(
        fields,
        count=fields.integer("num_local_experts"),
        ffn_hidden_size=ffn,
        shares_sum_to_one=True,
        shared_ffn_hidden_size=None,
    )
    return decoder(fields, family="mixtral", sliding_window=fields.integer_or_none("sliding_window"), experts=experts)


_NO_BIAS = Only((False,), "Mixtral's linears have no biases")

MIXTRAL = Family(
    model_type="mixtral",
    model_classes=("MixtralForCausalLM",),
    config_class="MixtralConfig",
    defaults={
        **DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_jitter_noise": 0.0,
    },
    only={
        "hidden_act": SILU,
        "attention_bias": _NO_BIAS,
        "mlp_bias": _NO_BIAS,
        "router_jitter_noise": Only((0, 0.0), "noise would be multiplied into what the router sees"),
    },
    harmless=OF_TRAINING,
    default_theta=1_000_000.0,
    build=_build,
)
