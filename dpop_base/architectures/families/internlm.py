"""InternLM3 dense: Llama under another name."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _build(fields: Fields) -> Architecture:
    return decoder(fields, family="internlm3")


_NO_BIAS = Only((False,), "transformers has InternLM3 with all biases or none, and the feed-forward has none here")

INTERNLM3 = Family(
    model_type="internlm3",
    model_classes=("InternLM3ForCausalLM", "LlamaForCausalLM"),  # the latter by which transformers computes it
    config_class="InternLM3Config",
    defaults={
        **DEFAULTS,
        "vocab_size": 128512,
        "intermediate_size": 10240,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    },
    only={"hidden_act": SILU, **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "bias"), _NO_BIAS)},
    build=_build,
)
