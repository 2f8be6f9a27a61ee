"""What nearly all families spell alike, and sliding windows as they spell them."""

from typing import Any

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.fields import Fields, Only
from dpop_base.architectures.rope import Rope, read_rope

SILU = Only(("silu", "swish"), "the feed-forward is gated with SiLU")
NO_MLP_BIAS = Only((False,), "Megatron-Core's gated feed-forward would need biases of its own")
FULL, SLIDING = "full_attention", "sliding_attention"


def decoder(fields: Fields, *, family: str, rope: Rope | None = None, **options: Any) -> Architecture:
    """An architecture from the field names of Llama; `options` are the rest of `Architecture`, or take precedence."""
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    rope = read_rope(fields) if rope is None else rope
    shape = {
        "num_layers": fields.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": fields.integer("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer_or_none("num_key_value_heads") or heads,
        "head_dim": fields.integer_or_none("head_dim") or hidden // heads,
        "vocab_size": fields.integer("vocab_size"),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        **rope.options(),
    }
    return Architecture(family=family, **{**shape, **options})


def layer_types(fields: Fields, default: list[str]) -> list[str]:
    """Each layer's kind of attention, as `layer_types` says or as the family's other fields do."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != len(default) or not set(map(str, kinds)) <= {FULL, SLIDING}:
        raise fields.error(
            f"layer_types is {kinds!r} for {len(default)} layers",
            f"it must say {FULL!r} or {SLIDING!r} of each layer",
        )
    return kinds


def windows(fields: Fields, kinds: list[str], window: int | None) -> dict[str, Any]:
    """The options of `Architecture` for layers of these kinds."""
    if SLIDING not in kinds:
        return {}
    if window is None:
        raise fields.error(
            f"layer_types has {SLIDING!r}, and no window slides (sliding_window {fields.get('sliding_window')}, "
            f"use_sliding_window {fields.get('use_sliding_window')})",
            "set the window, or full_attention in all layers",
        )
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == FULL)
    return {"sliding_window": window, "full_attention_layers": full}


def windows_of_late_layers(fields: Fields) -> dict[str, Any]:
    """Qwen2 and 3 slide the window of layers from `max_window_layers` on, if at all."""
    layers, first = fields.integer("num_hidden_layers"), fields.get("max_window_layers")
    window = fields.integer_or_none("sliding_window") if fields.flag("use_sliding_window") else None
    fields.seen.add("sliding_window")  # transformers does not look at it either where use_sliding_window is false
    slides = window is not None and isinstance(first, int)
    default = [SLIDING if slides and layer >= first else FULL for layer in range(layers)]
    return windows(fields, layer_types(fields, default), window)
