"""GLM-4 dense: `glm` (glm-4-9b-chat-hf) and `glm4` (the 0414 models, with norms after attention and feed-forward)."""

from functools import partial

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only
from dpop_base.architectures.rope import read_rope


def _build(fields: Fields, *, family: str, post_norms: bool) -> Architecture:
    return decoder(
        fields,
        family=family,
        rope=read_rope(fields, partial=0.5),
        head_dim=fields.integer("head_dim"),
        qkv_bias=fields.flag("attention_bias"),
        post_norms=post_norms,
        rotary_interleaved=True,
    )


_DEFAULTS = {
    **DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "attention_bias": True,
    "attention_dropout": 0.0,
}
_ONLY = {"hidden_act": SILU, "mlp_bias": Only((False,), "GLM's feed-forward has no biases")}

GLM = Family(
    model_type="glm",
    model_classes=("GlmForCausalLM",),
    config_class="GlmConfig",
    defaults=_DEFAULTS,
    only=_ONLY,
    build=partial(_build, family="glm", post_norms=False),
)
GLM4 = Family(
    model_type="glm4",
    model_classes=("Glm4ForCausalLM",),
    config_class="Glm4Config",
    defaults=_DEFAULTS,
    only=_ONLY,
    build=partial(_build, family="glm4", post_norms=True),
)
