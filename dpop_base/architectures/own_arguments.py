"""
What a Megatron checkpoint says of its own model, held against an `Architecture`: one row for each thing that decides
how the model computes. Names are those of Megatron-LM's arguments and of Megatron-Core's `TransformerConfig`, which
Megatron-Bridge and NeMo 2 save too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpop_base.architectures.architecture import (
    Architecture,
    Experts,
    LinearScaling,
    RopeScaling,
    YarnScaling,
)

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Argument:
    """
    One thing that decides how a model computes. `ours` gives it from an architecture, `theirs` from the arguments, in
    terms that can be compared; `config` is config.json's word for it.
    """

    names: tuple[str, ...]  # the first that the arguments have counts; without any the row says nothing
    config: str
    ours: Callable[[Architecture], Any]
    theirs: Callable[[Any, Arguments], Any] = lambda value, arguments: value
    agree: Callable[[Any, Any], bool] = lambda theirs, ours: _equal(theirs, ours)


def disagreements(arguments: Arguments, a: Architecture) -> list[str]:
    """Each difference in words that name both sides, e.g. "rotary_base 10000 where config.json has rope_theta 1e6"."""
    found = []
    for row in ROWS:
        name = next((name for name in row.names if name in arguments), None)
        if name is None:
            continue
        theirs, ours = row.theirs(arguments[name], arguments), row.ours(a)
        if not row.agree(theirs, ours):
            shown = theirs if isinstance(theirs, RopeScaling) else arguments[name]
            found.append(f"{name} {_shown(shown)} where config.json has {row.config} {_shown(ours)}")
    return found


def config_from(arguments: Arguments, family: str, model_class: str) -> dict[str, Any]:
    """
    A `config.json` of this family from arguments alone. Whether the family can express them all is for the caller to
    ask: read it, and hold it against the arguments. Where those leave an option out it has Megatron-LM's default.
    Raises KeyError for a size that is missing.
    """
    heads = arguments["num_attention_heads"]
    scaling = _rope_scaling(arguments.get("use_rope_scaling", arguments.get("rope_scaling")), arguments)
    tied = _first(arguments, "share_embeddings_and_output_weights")
    if tied is None:
        tied = not arguments.get("untie_embeddings_and_output_weights", False)
    config = {
        "architectures": [model_class],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": arguments["hidden_size"],
        "intermediate_size": arguments["ffn_hidden_size"],
        "num_hidden_layers": arguments["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": _groups(arguments.get("num_query_groups"), arguments),
        "head_dim": _head_dim(arguments.get("kv_channels"), arguments),
        # Where the tokenizer's own size is unknown, no row of the table is dropped.
        "vocab_size": arguments.get("vocab_size") or arguments["padded_vocab_size"],
        "rms_norm_eps": _first(arguments, "norm_epsilon", "layernorm_epsilon") or 1e-5,
        "rope_theta": arguments.get("rotary_base", 10_000),
        "tie_word_embeddings": tied,
    }
    if length := _first(arguments, "max_position_embeddings", "seq_length"):
        config["max_position_embeddings"] = length
    if scaling is not None:
        config["rope_scaling"] = {"rope_type": "llama3", **vars(scaling)}
    config |= _experts_config(arguments, family)
    if family in ("llama", "qwen3", "qwen3_moe"):
        config["attention_bias"] = bool(arguments.get("add_qkv_bias", False))
    window = _window(arguments.get("window_size"), arguments)
    if family in ("mistral", "mixtral"):
        config["sliding_window"] = window
    elif window is not None and family in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    return config


def _experts_config(arguments: Arguments, family: str) -> dict[str, Any]:
    """What config.json says of the experts; empty of dense models, and of a family without experts."""
    count = _first(arguments, "num_experts", "num_moe_experts")
    if not count or family not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return {}
    chosen, ffn = arguments.get("moe_router_topk", 2), _first(arguments, "moe_ffn_hidden_size", "ffn_hidden_size")
    if family == "mixtral":
        return {"num_local_experts": count, "num_experts_per_tok": chosen, "intermediate_size": ffn}
    pattern = _every_nth_with_experts(arguments.get("moe_layer_freq", 1), arguments) or ()
    config = {
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": ffn,
        "norm_topk_prob": not arguments.get("moe_router_pre_softmax", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, has_experts in enumerate(pattern) if not has_experts],
    }
    if family == "qwen2_moe":
        config["shared_expert_intermediate_size"] = arguments["moe_shared_expert_intermediate_size"]
        config["qkv_bias"] = bool(arguments.get("add_qkv_bias", False))
    return config


def _first(arguments: Arguments, *names: str) -> Any:
    return next((arguments[name] for name in names if arguments.get(name) is not None), None)


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, float) or isinstance(ours, float):
        numbers = isinstance(theirs, int | float) and isinstance(ours, int | float)
        return numbers and math.isclose(theirs, ours, rel_tol=1e-6)
    if isinstance(ours, bool):  # a switch that is None is off
        return bool(theirs) is ours
    return bool(theirs == ours)


def _shown(value: Any) -> str:
    if isinstance(value, RopeScaling):
        return f"llama3, factor {value.factor:g} over {value.original_max_position_embeddings}"
    return str(value)


def _groups(value: Any, arguments: Arguments) -> Any:
    grouped = arguments.get("group_query_attention", True)  # Megatron-LM's switch; elsewhere None means ungrouped
    return value if grouped and value is not None else arguments.get("num_attention_heads")


def _head_dim(value: Any, arguments: Arguments) -> Any:
    return value if value is not None else arguments["hidden_size"] // arguments["num_attention_heads"]


def _window(value: Any, arguments: Arguments) -> Any:
    """Tokens that a token sees, itself included: Megatron counts those before it."""
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], int):
        return value[0] + 1 if value[0] >= 0 else None
    return value


def _rope_scaling(value: Any, arguments: Arguments) -> RopeScaling | None:
    """Llama 3's; Megatron-LM has an argument for the factor alone, and the other numbers of Llama 3.1 built in."""
    if not value:
        return None
    return RopeScaling(
        factor=float(_first(arguments, "rope_scaling_factor", "scale_factor") or 8.0),
        low_freq_factor=float(arguments.get("low_freq_factor") or 1.0),
        high_freq_factor=float(arguments.get("high_freq_factor") or 4.0),
        original_max_position_embeddings=int(arguments.get("old_context_len") or 8192),
    )


def _covered(theirs: Any, ours: Any) -> bool:
    """A tokenizer smaller than the table has rows to spare; a larger one has tokens that would be lost."""
    return theirs is None or theirs <= ours


def padding_is_known(arguments: Arguments, a: Architecture) -> bool:
    """True where the arguments say that vocabulary rows beyond `a.vocab_size` are padding."""
    if arguments.get("vocab_size") is not None:
        return _covered(arguments["vocab_size"], a.vocab_size)
    try:
        multiple = arguments["make_vocab_size_divisible_by"] * arguments.get("tensor_model_parallel_size", 1)
        return bool(arguments["padded_vocab_size"] == math.ceil(a.vocab_size / multiple) * multiple)
    except (KeyError, TypeError, ZeroDivisionError):
        return False


def _activation(value: Any, arguments: Arguments) -> Any:
    name = value.get("_target_") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return "silu" if arguments.get("gated_linear_unit", True) else value
    name = name.rpartition(".")[2]
    return "gelu_tanh" if name in ("fast_gelu", "gelu_pytorch_tanh") else name


def _always(value: Any) -> Callable[[Architecture], Any]:
    return lambda a: value


def _empty(value: Any, arguments: Arguments) -> Any:
    return value or None


def _llama3(a: Architecture) -> RopeScaling | None:
    return a.rope_scaling if isinstance(a.rope_scaling, RopeScaling) else None


def _linear(a: Architecture) -> float | None:
    return a.rope_scaling.factor if isinstance(a.rope_scaling, LinearScaling) else None


def _yarn(a: Architecture) -> YarnScaling | None:
    return a.rope_scaling if isinstance(a.rope_scaling, YarnScaling) else None


def _of_yarn(read: Callable[[YarnScaling], float]) -> Callable[[Architecture], float | None]:
    return lambda a: None if (yarn := _yarn(a)) is None else read(yarn)


def _of_experts(read: Callable[[Experts], Any]) -> Callable[[Architecture], Any]:
    return lambda a: None if a.experts is None else read(a.experts)


def _dense_ffn(a: Architecture) -> int | None:
    """None where no layer has a dense feed-forward, of which Megatron has a size all the same."""
    return None if a.experts is not None and a.layers_are_alike else a.ffn_hidden_size


def _if_ours(theirs: Any, ours: Any) -> bool:
    """Megatron has a value for it whether or not it is used."""
    return ours is None or _equal(theirs, ours)


def _every_nth_unrotated(value: Any, arguments: Arguments) -> Any:
    """Megatron says either which layers, or that each n-th is one."""
    return _pattern(value, arguments, nth=1)


def _every_nth_full(value: Any, arguments: Arguments) -> Any:
    return _pattern(value, arguments, nth=0) if arguments.get("window_size") else None


def _every_nth_with_experts(value: Any, arguments: Arguments) -> Any:
    """Megatron's n counts from the first layer: 2 gives experts to layers 0, 2, 4, ..."""
    if not (arguments.get("num_experts") or arguments.get("num_moe_experts")):
        return None
    if isinstance(value, int) and value > 1:
        return [int(layer % value == 0) for layer in range(arguments["num_layers"])]
    return list(value) if isinstance(value, list | tuple) and 0 in value else None


def _pattern(value: Any, arguments: Arguments, *, nth: int) -> Any:
    if isinstance(value, int) and value > 0:
        return [nth if (layer + 1) % value == 0 else 1 - nth for layer in range(arguments["num_layers"])]
    if isinstance(value, list | tuple):
        return list(value) if nth in value else None
    return value or None


ROWS: tuple[Argument, ...] = (
    Argument(("num_layers",), "num_hidden_layers", lambda a: a.num_layers),
    Argument(("hidden_size",), "hidden_size", lambda a: a.hidden_size),
    Argument(("ffn_hidden_size",), "intermediate_size", _dense_ffn, agree=_if_ours),
    Argument(("num_attention_heads",), "num_attention_heads", lambda a: a.num_attention_heads),
    Argument(("num_query_groups",), "num_key_value_heads", lambda a: a.num_key_value_heads, _groups),
    Argument(("kv_channels",), "head_dim", lambda a: a.head_dim, _head_dim),
    Argument(("norm_epsilon", "layernorm_epsilon"), "rms_norm_eps", lambda a: a.norm_epsilon),
    Argument(("vocab_size",), "vocab_size", lambda a: a.vocab_size, agree=_covered),
    Argument(("normalization",), "normalization", _always("RMSNorm")),
    Argument(
        ("apply_layernorm_1p", "layernorm_zero_centered_gamma"), "norms of 1 + weight:", lambda a: a.zero_centered_norms
    ),
    Argument(("rotary_base",), "rope_theta", lambda a: a.rope_theta),
    Argument(("rotary_percent",), "partial_rotary_factor", lambda a: a.rotary_percent),
    Argument(("rotary_interleaved",), "interleaved rotary:", lambda a: a.rotary_interleaved),
    Argument(("use_rope_scaling", "rope_scaling", "scale_factor"), "rope scaling", _llama3, _rope_scaling),
    Argument(
        ("rotary_seq_len_interpolation_factor", "seq_len_interpolation_factor"), "linear scaling", _linear, _empty
    ),
    Argument(("position_embedding_type",), "position embedding", lambda a: "yarn" if _yarn(a) else "rope"),
    Argument(
        ("yarn_original_max_position_embeddings",),
        "yarn's original length",
        _of_yarn(lambda y: y.original_max_position_embeddings),
        agree=_if_ours,
    ),
    Argument(
        ("rotary_scaling_factor", "yarn_rotary_scaling_factor"),
        "yarn's factor",
        _of_yarn(lambda y: y.factor),
        agree=_if_ours,
    ),
    Argument(("no_rope_freq",), "layers without rotary", lambda a: a.unrotated_pattern, _every_nth_unrotated),
    Argument(("swiglu",), "hidden_act silu:", lambda a: a.activation == "silu"),
    Argument(("gated_linear_unit",), "a gated feed-forward:", _always(True)),
    Argument(("activation_func",), "hidden_act", lambda a: a.activation, _activation),
    Argument(("add_bias_linear",), "biases of all linears:", _always(False)),
    Argument(("add_qkv_bias",), "biases of q, k and v:", lambda a: a.qkv_bias),
    Argument(("qk_layernorm",), "norms of q and k:", lambda a: a.qk_norm),
    Argument(("qk_l2_norm",), "norms of q and k without weights:", _always(False)),
    Argument(("untie_embeddings_and_output_weights",), "untied embeddings:", lambda a: not a.tied_embeddings),
    Argument(("share_embeddings_and_output_weights",), "tie_word_embeddings", lambda a: a.tied_embeddings),
    Argument(("window_size",), "sliding_window", lambda a: a.sliding_window, _window),
    Argument(("window_attn_skip_freq",), "layers with a window", lambda a: a.window_pattern, _every_nth_full),
    Argument(("softmax_scale",), "attention scale", lambda a: a.attention_scale),
    Argument(("softmax_type",), "softmax", _always("vanilla")),
    Argument(("num_experts", "num_moe_experts"), "experts", _of_experts(lambda e: e.count), _empty),
    Argument(("moe_router_topk",), "num_experts_per_tok", _of_experts(lambda e: e.per_token), agree=_if_ours),
    Argument(
        ("moe_ffn_hidden_size",),
        "moe_intermediate_size",
        _of_experts(lambda e: e.ffn_hidden_size),
        lambda value, arguments: value or arguments.get("ffn_hidden_size"),
        agree=_if_ours,
    ),
    Argument(
        ("moe_shared_expert_intermediate_size",),
        "shared_expert_intermediate_size",
        _of_experts(lambda e: e.shared_ffn_hidden_size),
        _empty,
    ),
    Argument(("moe_layer_freq",), "layers with experts", lambda a: a.expert_pattern, _every_nth_with_experts),
    Argument(
        ("moe_router_pre_softmax",),
        "shares of all experts' probability:",
        _of_experts(lambda e: not e.shares_sum_to_one),
        agree=_if_ours,
    ),
    Argument(("moe_router_score_function",), "router scores", _of_experts(lambda e: "softmax"), agree=_if_ours),
    Argument(("moe_router_topk_scaling_factor",), "a scale of routed tokens", _always(None), _empty),
    Argument(("moe_router_enable_expert_bias",), "a bias of experts:", _always(False)),
    Argument(("multi_latent_attention",), "multi-latent attention:", _always(False)),
    Argument(("attention_output_gate",), "a gate after attention:", _always(False)),
    Argument(("mtp_num_layers",), "layers of multi-token prediction", _always(None), _empty),
    Argument(("apply_residual_connection_post_layernorm",), "residuals after norms:", _always(False)),
    Argument(("activation_func_clamp_value",), "a clamped feed-forward:", _always(None)),
    Argument(("heterogeneous_layers_config_path",), "layers that differ", _always(None), _empty),
)
