"""ERNIE 4.5 dense: Llama with rotary positions of neighbouring dimensions."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _build(fields: Fields) -> Architecture:
    return decoder(fields, family="ernie4_5", rotary_interleaved=True)


ERNIE4_5 = Family(
    model_type="ernie4_5",
    model_classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),  # the latter in the models' own code
    config_class="Ernie4_5Config",
    default_theta=500_000.0,
    defaults={
        **DEFAULTS,
        "vocab_size": 103424,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    only={"hidden_act": SILU, "use_bias": Only((False,), "the feed-forward would have biases too")},
    build=_build,
)
