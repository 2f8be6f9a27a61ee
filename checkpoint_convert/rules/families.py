"""The tables: adding a family is adding a table (and a reader of its `config.json`)."""

import re
from collections.abc import Callable
from dataclasses import replace

from checkpoint_convert.rules.layouts import (
    Size,
    expert_feed_forward,
    feed_forward,
    fused_gate_up,
    gate_then_up,
    grouped_from_fused_qkv,
    grouped_qkv,
    head,
    hidden,
    num_experts,
    one,
    queries,
    shared_feed_forward,
    vocabulary,
    whole,
)
from checkpoint_convert.rules.rule import Layers, TensorRule, every_layer, has_experts
from dpop_base.architectures.architecture import Architecture

LAYER = "decoder.layers.{layer}."


def _qkv_bias(a: Architecture) -> bool:
    return a.qkv_bias


def _output_bias(a: Architecture) -> bool:
    return a.attention_output_bias


def _qk_norm(a: Architecture) -> bool:
    return a.qk_norm


def _untied(a: Architecture) -> bool:
    return not a.tied_embeddings


def _is_dense(a: Architecture, layer: int) -> bool:
    return not a.has_experts(layer)


def _has_shared_expert(a: Architecture) -> bool:
    return a.experts is not None and a.experts.shared_ffn_hidden_size is not None


def _fused_qkv(layer: str) -> tuple[TensorRule, ...]:
    """Phi-3."""
    name = layer + "self_attn.qkv_proj.weight"
    return (TensorRule(LAYER + "self_attention.linear_qkv.weight", (name,), grouped_from_fused_qkv, hidden),)


def _split_qkv(layer: str) -> tuple[TensorRule, ...]:
    names = tuple(f"{layer}self_attn.{part}_proj" for part in "qkv")
    weights, biases = tuple(n + ".weight" for n in names), tuple(n + ".bias" for n in names)
    target = LAYER + "self_attention.linear_qkv."
    return (
        TensorRule(target + "weight", weights, grouped_qkv, hidden),
        TensorRule(target + "bias", biases, grouped_qkv, when=_qkv_bias),
    )


def _fused_mlp(layer: str) -> tuple[TensorRule, ...]:
    """Phi-3, GLM."""
    return (
        TensorRule(LAYER + "mlp.linear_fc1.weight", (layer + "mlp.gate_up_proj.weight",), fused_gate_up, hidden),
        TensorRule(LAYER + "mlp.linear_fc2.weight", (layer + "mlp.down_proj.weight",), whole(hidden), feed_forward),
    )


def _gated(
    megatron: str, names: tuple[str, str, str], size: Size, layers: Layers = every_layer
) -> tuple[TensorRule, ...]:
    """A gated feed-forward of Megatron's from the family's gate, up and down projections, without `.weight`."""
    gate, up, down = (name + ".weight" for name in names)
    return (
        TensorRule(megatron + "linear_fc1.weight", (gate, up), gate_then_up(size), hidden, layers=layers),
        TensorRule(megatron + "linear_fc2.weight", (down,), whole(hidden), size, layers=layers),
    )


def _gate_up_down(prefix: str) -> tuple[str, str, str]:
    return prefix + "gate_proj", prefix + "up_proj", prefix + "down_proj"


def _split_mlp(layer: str) -> tuple[TensorRule, ...]:
    return _gated(LAYER + "mlp.", _gate_up_down(layer + "mlp."), feed_forward, _is_dense)


def _mixture(layer: str, *, router: str, expert: tuple[str, str, str]) -> tuple[TensorRule, ...]:
    """A router and experts; `expert`: gate, up and down projections of `{expert}`."""
    mlp = LAYER + "mlp."
    names = (layer + expert[0], layer + expert[1], layer + expert[2])
    router_rule = TensorRule(mlp + "router.weight", (layer + router,), whole(num_experts), hidden, layers=has_experts)
    return (router_rule, *_gated(mlp + "experts.experts.{expert}.", names, expert_feed_forward, has_experts))


def _qwen_mixture(layer: str) -> tuple[TensorRule, ...]:
    """Layers of experts, with or without a shared one, among dense ones."""
    shared = _gated(
        LAYER + "mlp.shared_experts.", _gate_up_down(layer + "mlp.shared_expert."), shared_feed_forward, has_experts
    )
    gate = LAYER + "mlp.shared_experts.gate_weight", (layer + "mlp.shared_expert_gate.weight",)
    return (
        *_split_mlp(layer),
        *_mixture(layer, router="mlp.gate.weight", expert=_gate_up_down("mlp.experts.{expert}.")),
        *(replace(rule, when=_has_shared_expert) for rule in shared),
        TensorRule(*gate, whole(one), hidden, when=_has_shared_expert, layers=has_experts),
    )


def _mixtral_mixture(layer: str) -> tuple[TensorRule, ...]:
    """w2(silu(w1(x)) * w3(x))."""
    expert = "block_sparse_moe.experts.{expert}."
    names = (expert + "w1", expert + "w3", expert + "w2")
    return _mixture(layer, router="block_sparse_moe.gate.weight", expert=names)


Part = Callable[[str], tuple[TensorRule, ...]]


def _llama_like(
    *,
    qkv: Part = _split_qkv,
    mlp: Part = _split_mlp,
    second_norm: str = "post_attention_layernorm",
    post_norms: tuple[str, str] | None = None,
) -> tuple[TensorRule, ...]:
    """Llama's naming, which most families share; biases and norms by the architecture's flags.

    second_norm: the one before the feed-forward. post_norms: those after attention and after the feed-forward.
    """
    layer = "model.layers.{layer}."
    attention = layer + "self_attn."
    to_attention, to_mlp = LAYER + "self_attention.", LAYER + "mlp."
    after_attention: tuple[TensorRule, ...] = ()
    after_mlp: tuple[TensorRule, ...] = ()
    if post_norms is not None:
        first, second = (layer + name + ".weight" for name in post_norms)
        after_attention = (TensorRule(to_attention + "linear_proj.post_layernorm.weight", (first,), whole(hidden)),)
        after_mlp = (TensorRule(to_mlp + "linear_fc2.post_layernorm.weight", (second,), whole(hidden)),)
    return (
        TensorRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), whole(vocabulary), hidden),
        TensorRule(to_attention + "linear_qkv.layer_norm_weight", (layer + "input_layernorm.weight",), whole(hidden)),
        *qkv(layer),
        TensorRule(to_attention + "q_layernorm.weight", (attention + "q_norm.weight",), whole(head), when=_qk_norm),
        TensorRule(to_attention + "k_layernorm.weight", (attention + "k_norm.weight",), whole(head), when=_qk_norm),
        TensorRule(to_attention + "linear_proj.weight", (attention + "o_proj.weight",), whole(hidden), queries),
        TensorRule(to_attention + "linear_proj.bias", (attention + "o_proj.bias",), whole(hidden), when=_output_bias),
        *after_attention,
        TensorRule(
            to_mlp + "linear_fc1.layer_norm_weight",
            (layer + second_norm + ".weight",),
            whole(hidden),
            layers=_is_dense,
        ),
        TensorRule(
            LAYER + "pre_mlp_layernorm.weight", (layer + second_norm + ".weight",), whole(hidden), layers=has_experts
        ),
        *mlp(layer),
        *after_mlp,
        TensorRule("decoder.final_layernorm.weight", ("model.norm.weight",), whole(hidden)),
        TensorRule("output_layer.weight", ("lm_head.weight",), whole(vocabulary), hidden, when=_untied),
    )


def _qwen1() -> tuple[TensorRule, ...]:
    layer = "transformer.h.{layer}."
    to_qkv, to_fc1 = LAYER + "self_attention.linear_qkv.", LAYER + "mlp.linear_fc1."
    gate, up = layer + "mlp.w2.weight", layer + "mlp.w1.weight"  # c_proj(w1(x) * silu(w2(x)))
    return (
        TensorRule("embedding.word_embeddings.weight", ("transformer.wte.weight",), whole(vocabulary), hidden),
        TensorRule(to_qkv + "layer_norm_weight", (layer + "ln_1.weight",), whole(hidden)),
        TensorRule(to_qkv + "weight", (layer + "attn.c_attn.weight",), grouped_from_fused_qkv, hidden),
        TensorRule(to_qkv + "bias", (layer + "attn.c_attn.bias",), grouped_from_fused_qkv),
        TensorRule(
            LAYER + "self_attention.linear_proj.weight",
            (layer + "attn.c_proj.weight",),
            whole(hidden),
            queries,
        ),
        TensorRule(to_fc1 + "layer_norm_weight", (layer + "ln_2.weight",), whole(hidden)),
        TensorRule(to_fc1 + "weight", (gate, up), gate_then_up(feed_forward), hidden),
        TensorRule(LAYER + "mlp.linear_fc2.weight", (layer + "mlp.c_proj.weight",), whole(hidden), feed_forward),
        TensorRule("decoder.final_layernorm.weight", ("transformer.ln_f.weight",), whole(hidden)),
        TensorRule("output_layer.weight", ("lm_head.weight",), whole(vocabulary), hidden, when=_untied),
    )


RULES: dict[str, tuple[TensorRule, ...]] = {
    "ernie4_5": _llama_like(),
    "gemma3_text": _llama_like(
        second_norm="pre_feedforward_layernorm",
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "glm": _llama_like(mlp=_fused_mlp),
    "glm4": _llama_like(mlp=_fused_mlp, post_norms=("post_self_attn_layernorm", "post_mlp_layernorm")),
    "granite": _llama_like(),
    "internlm3": _llama_like(),
    "llama": _llama_like(),
    "mistral": _llama_like(),
    "mixtral": _llama_like(mlp=_mixtral_mixture),
    "phi3": _llama_like(qkv=_fused_qkv, mlp=_fused_mlp),
    "qwen": _qwen1(),
    "qwen2": _llama_like(),
    "qwen2_moe": _llama_like(mlp=_qwen_mixture),
    "qwen3": _llama_like(),
    "qwen3_moe": _llama_like(mlp=_qwen_mixture),
    "seed_oss": _llama_like(),
    "smollm3": _llama_like(),
}

# Buffers that old checkpoints carry and that are functions of the config: rotary frequencies, causal masks.
RECOMPUTED = re.compile(
    r"(model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)|transformer\.rotary_emb\.inv_freq"
    r"|model\.layers\.\d+\.self_attn\.(masked_bias|bias)"
    r"|transformer\.h\.\d+\.attn\.(rotary_emb\.inv_freq|masked_bias|bias))"
)
