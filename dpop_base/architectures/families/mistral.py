"""Mistral 7B, Nemo, Small (text), and what is stored as Mistral."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _build(fields: Fields) -> Architecture:
    window, slides = fields.integer_or_none("sliding_window"), fields.get("use_sliding_window")
    if window is not None and slides is False:
        raise fields.error(
            f"use_sliding_window is false, and Mistral's window of {window} slides all the same in transformers",
            'set "sliding_window": null if the model has none, else remove use_sliding_window',
        )
    return decoder(fields, family="mistral", sliding_window=window)


_NO_BIAS = Only((False,), "Mistral's linears have no biases")

MISTRAL = Family(
    model_type="mistral",
    model_classes=("MistralForCausalLM",),
    config_class="MistralConfig",
    defaults={
        **DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "attention_dropout": 0.0,
    },
    only={
        "hidden_act": SILU,
        "attention_bias": _NO_BIAS,
        "mlp_bias": _NO_BIAS,
    },
    build=_build,
)
