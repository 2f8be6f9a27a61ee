"""Gemma 3's text models: four norms a layer, windows on most layers with rotary positions of their own."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import DEFAULTS
from dpop_base.architectures.decoder import FULL, SLIDING, decoder, layer_types, windows
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only
from dpop_base.architectures.rope import rope_of, rope_table


def _build(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    every = fields.integer("sliding_window_pattern")
    layers = fields.integer("num_hidden_layers")
    kinds = layer_types(fields, [SLIDING if (layer + 1) % every else FULL for layer in range(layers)])
    full, sliding = _rope_tables(fields)
    return decoder(
        fields,
        family="gemma3_text",
        rope=rope_of(fields, full),
        sliding_rope_theta=_sliding_theta(fields, sliding),
        head_dim=fields.integer("head_dim"),
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        post_norms=True,
        zero_centered_norms=True,
        activation="gelu_tanh",
        embedding_multiplier=fields.integer("hidden_size") ** 0.5,
        attention_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        **windows(fields, kinds, fields.integer_or_none("sliding_window")),
    )


def _rope_tables(fields: Fields) -> tuple[dict[str, object], dict[str, object]]:
    """Reads the tables of layers that see all and of those with a window; only the former have `rope_scaling`."""
    tables = rope_table(fields, "rope_parameters")
    if set(tables) - {FULL, SLIDING} or not all(isinstance(table, dict) for table in tables.values()):
        raise fields.error(f"rope_parameters is {tables!r}", f"it must hold a table for {FULL!r} and {SLIDING!r}")
    return {**tables.get(FULL, {}), **rope_table(fields, "rope_scaling")}, dict(tables.get(SLIDING, {}))


def _sliding_theta(fields: Fields, table: dict[str, object]) -> float:
    theta = table.pop("rope_theta", None)
    beside = fields.number("rope_local_base_freq")
    if table not in ({}, {"rope_type": "default"}) or not isinstance(theta, int | float | None):
        raise fields.error(
            f"rope_parameters of sliding layers are {table!r}", "only an unscaled rope_theta is supported"
        )
    if theta is not None and fields.values.get("rope_local_base_freq") not in (None, theta):
        raise fields.error(
            f"rope_local_base_freq says {beside!r}, rope_parameters of sliding layers {theta!r}", "remove the wrong one"
        )
    return beside if theta is None else float(theta)


GEMMA3 = Family(
    model_type="gemma3_text",
    model_classes=("Gemma3ForCausalLM",),
    config_class="Gemma3TextConfig",
    default_theta=1_000_000.0,
    defaults={
        **DEFAULTS,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "use_bidirectional_attention": False,
    },
    # Read by transformers' class without being its fields.
    hidden_defaults={"sliding_window_pattern": 6, "rope_local_base_freq": 10_000.0},
    only={"hidden_activation": Only(("gelu_pytorch_tanh",), "the feed-forward is gated with GELU's tanh form")},
    build=_build,
)
