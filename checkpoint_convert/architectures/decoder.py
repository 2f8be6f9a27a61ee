"""What nearly all families spell alike, and the sliding window as Qwen spells it."""

from typing import Any

from checkpoint_convert.architectures.architecture import Architecture
from checkpoint_convert.architectures.fields import Fields, Only
from checkpoint_convert.architectures.rope import read_rope

SILU = Only(("silu", "swish"), "the feed-forward is gated with SiLU")


def decoder(fields: Fields, *, family: str, **options: Any) -> Architecture:
    """An architecture from the field names of Llama; `options` are the rest of `Architecture`, or take precedence."""
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    theta, scaling = read_rope(fields)
    shape = {
        "num_layers": fields.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": fields.integer("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer_or_none("num_key_value_heads") or heads,
        "head_dim": fields.integer_or_none("head_dim") or hidden // heads,
        "vocab_size": fields.integer("vocab_size"),
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_embeddings": fields.flag("tie_word_embeddings"),
    }
    return Architecture(family=family, **{**shape, **options})


def window_of_late_layers(fields: Fields) -> int | None:
    """Qwen2 and 3 slide the window of layers from `max_window_layers` on, if at all; a mixture is refused."""
    layers, first = fields.integer("num_hidden_layers"), fields.get("max_window_layers")
    window = fields.integer_or_none("sliding_window") if fields.flag("use_sliding_window") else None
    fields.seen.add("sliding_window")  # transformers does not look at it either where use_sliding_window is false
    kinds = fields.get("layer_types")
    if kinds is None:
        slides = window is not None and isinstance(first, int)
        kinds = ["sliding_attention" if slides and i >= first else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise fields.error(f"layer_types is {kinds!r} for {layers} layers", "it must name each layer's attention")
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"} and window is not None:
        return window
    raise fields.error(
        f"use_sliding_window {fields.get('use_sliding_window')} with max_window_layers {first} and layer_types "
        f"{sorted(set(map(str, kinds)))} mixes kinds of attention among {layers} layers",
        "only full attention in all layers, or the same window in all, is supported",
    )
