"""The tables: adding a family is adding a table (and a reader of its `config.json`)."""

import re
from collections.abc import Callable

from checkpoint_convert.rules.layouts import (
    feed_forward,
    fused_gate_up,
    gate_then_up,
    grouped_from_fused_qkv,
    grouped_qkv,
    head,
    hidden,
    queries,
    vocabulary,
    whole,
)
from checkpoint_convert.rules.rule import TensorRule
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
    return (TensorRule(LAYER + "mlp.linear_fc1.weight", (layer + "mlp.gate_up_proj.weight",), fused_gate_up, hidden),)


def _split_mlp(layer: str) -> tuple[TensorRule, ...]:
    names = (layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight")
    return (TensorRule(LAYER + "mlp.linear_fc1.weight", names, gate_then_up, hidden),)


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
        TensorRule(to_mlp + "linear_fc1.layer_norm_weight", (layer + second_norm + ".weight",), whole(hidden)),
        *mlp(layer),
        TensorRule(to_mlp + "linear_fc2.weight", (layer + "mlp.down_proj.weight",), whole(hidden), feed_forward),
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
        TensorRule(to_fc1 + "weight", (gate, up), gate_then_up, hidden),
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
    "phi3": _llama_like(qkv=_fused_qkv, mlp=_fused_mlp),
    "qwen": _qwen1(),
    "qwen2": _llama_like(),
    "qwen3": _llama_like(),
    "seed_oss": _llama_like(),
    "smollm3": _llama_like(),
}

# Buffers that old checkpoints carry and that are functions of the config: rotary frequencies, causal masks.
RECOMPUTED = re.compile(
    r"(model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)|transformer\.rotary_emb\.inv_freq"
    r"|model\.layers\.\d+\.self_attn\.(masked_bias|bias)"
    r"|transformer\.h\.\d+\.attn\.(rotary_emb\.inv_freq|masked_bias|bias))"
)
