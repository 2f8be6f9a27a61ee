"""Phi-3, Phi-3.5 and Phi-4 dense: q, k and v fused, gate and up fused."""

from dpop_base.architectures.architecture import Architecture, ShortScaling
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import SILU, decoder
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only
from dpop_base.architectures.rope import Rope, rope_of, rope_table


def _build(fields: Fields) -> Architecture:
    rope = _rope(fields)
    architecture = decoder(fields, family="phi3", rope=rope, sliding_window=fields.integer_or_none("sliding_window"))
    if isinstance(rope.scaling, ShortScaling) and len(rope.scaling.factors) != architecture.rotary_dim // 2:
        raise fields.error(
            f"short_factor has {len(rope.scaling.factors)} numbers for {architecture.rotary_dim} rotated dimensions",
            "it must have half as many",
        )
    return architecture


def _rope(fields: Fields) -> Rope:
    """transformers takes Phi-3's "su" and "yarn" for longrope, and rope_scaling before rope_parameters."""
    fields.seen.add("original_max_position_embeddings")  # longrope's alone
    table = rope_table(fields, "rope_scaling") or rope_table(fields, "rope_parameters")
    fields.seen.add("rope_parameters")
    kinds = {name: "longrope" for name in ("rope_type", "type") if table.get(name) in ("su", "yarn", "longrope")}
    rope = rope_of(fields, {**table, **kinds}, partial=1.0)
    if rope.scaling is not None and not isinstance(rope.scaling, ShortScaling):
        raise fields.error(f"rope scaling of {table} is not supported", "transformers has Phi-3 with longrope or none")
    return rope


_NO_BIAS = Only((False,), "Phi-3's linears have no biases")

PHI3 = Family(
    model_type="phi3",
    model_classes=("Phi3ForCausalLM",),
    config_class="Phi3Config",
    defaults={
        **DEFAULTS,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    only={"hidden_act": SILU, **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), _NO_BIAS)},
    # Of Phi-4-mini's own code, which transformers' class does not read.
    harmless=frozenset({"full_attn_mod", "interpolate_factor"}),
    build=_build,
)
