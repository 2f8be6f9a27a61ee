"""
A decoder's forward pass in plain PyTorch and fp32, reading one layer's weights at a time: what `verify --logits`
runs on both checkpoints. It reads Hugging Face's layout and Megatron's each as its own framework does (the grouped
linear_qkv by reshaping, not by the converter's rules), so that it would notice a rule that is wrong both ways.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint_convert.expert_logits import mixture_of_experts
from checkpoint_convert.frequencies import frequencies
from checkpoint_convert.tensors.source import TensorSource
from checkpoint_convert.tensors.torch_dtypes import TORCH
from dpop_base.architectures.architecture import Architecture

NUM_TOKENS = 32  # a prompt's, and those beyond what it must see
MOST_TOKENS = 16384


def prompt(a: Architecture, num_tokens: int | None = None) -> Tensor:
    """int64 [tokens]: the same ids for every checkpoint of a vocabulary."""
    length = min(MOST_TOKENS, needed_length(a)) if num_tokens is None else num_tokens
    return torch.randint(0, a.vocab_size, (length,), generator=torch.Generator().manual_seed(0))


def needed_length(a: Architecture) -> int:
    """Tokens enough to go beyond the model's sliding window, and beyond the length before its rope scaling."""
    beyond = max(a.sliding_window or 0, getattr(a.rope_scaling, "original_max_position_embeddings", 0))
    return min(beyond + NUM_TOKENS, max(NUM_TOKENS, a.max_position_embeddings))


def forward(
    source: TensorSource, a: Architecture, tokens: Tensor, *, megatron: bool, keep: int | None = None
) -> Tensor:
    """
    fp32 [tokens, vocab] logits of int64 [tokens], from a source with Megatron's names or with the family's; of the last
    `keep` tokens alone where that is given.
    """
    weights = _Weights(source)
    names = _MEGATRON if megatron else _NAMES.get(a.family, _LLAMA)
    rotations = {sliding: _cosines_and_sines(a, len(tokens), sliding=sliding) for sliding in (False, True)}
    x = a.embedding_multiplier * weights.rows(names["embedding"], tokens)  # [tokens, hidden]
    for layer in range(a.num_layers):
        read = _Layer(weights, names, layer)
        normed = _rms_norm(x, read("norm1"), a)
        q, k, v = _megatron_qkv(read, normed, a) if megatron else _split_qkv(read, normed, a)
        if a.qk_norm:
            q, k = _rms_norm(q, read("q_norm"), a), _rms_norm(k, read("k_norm"), a)
        if layer not in a.unrotated_layers:
            cos, sin = rotations[a.window(layer) is not None]
            q, k = _rotate(q, cos, sin, a), _rotate(k, cos, sin, a)
        mixed = _attend(q, k, v, a, a.window(layer))
        x = _added(x, F.linear(mixed, read("output"), _bias(read, "output_bias", a.attention_output_bias)), read, 1, a)
        if a.has_experts(layer):
            mixture = mixture_of_experts(weights, a, layer, _rms_norm(x, read("expert_norm"), a), megatron=megatron)
            x = _added(x, mixture, read, 2, a)
        else:
            gate, up = _gate_up(read, _rms_norm(x, read("norm2"), a))
            x = _added(x, F.linear(_ACTIVATIONS[a.activation](gate) * up, read("down")), read, 2, a)
    x = _rms_norm(x[-keep:] if keep else x, weights(names["final_norm"]), a)
    return F.linear(x, weights(names["embedding" if a.tied_embeddings else "head"])) / a.logits_divisor


def _cosines_and_sines(a: Architecture, num_tokens: int, *, sliding: bool) -> tuple[Tensor, Tensor]:
    """fp32 [tokens, rotary_dim / 2]."""
    per_position, factor = frequencies(a, sliding=sliding)
    angles = torch.arange(num_tokens, dtype=torch.float32)[:, None] * per_position
    return angles.cos() * factor, angles.sin() * factor


def _added(x: Tensor, half: Tensor, read: "_Layer", number: int, a: Architecture) -> Tensor:
    """What came into a layer's half, and what the half gives."""
    if a.post_norms:
        half = _rms_norm(half, read(f"post_norm{number}"), a)
    return x + a.residual_multiplier * half


class _Weights:
    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def __call__(self, name: str) -> Tensor:
        info = self._source.tensors[name]
        data = bytearray(info.num_bytes)
        self._source.read_rows(name, 0, info.shape[0], memoryview(data))
        return torch.frombuffer(data, dtype=TORCH[info.dtype]).float().view(info.shape)

    def rows(self, name: str, indices: Tensor) -> Tensor:
        info = self._source.tensors[name]
        data = bytearray(len(indices) * info.row_bytes)
        for place, index in enumerate(indices.tolist()):
            row = memoryview(data)[place * info.row_bytes : (place + 1) * info.row_bytes]
            self._source.read_rows(name, index, 1, row)
        return torch.frombuffer(data, dtype=TORCH[info.dtype]).float().view(len(indices), *info.shape[1:])


class _Layer:
    def __init__(self, weights: _Weights, names: dict[str, str], layer: int) -> None:
        self._weights, self._names, self._layer = weights, names, layer

    def __call__(self, role: str) -> Tensor:
        return self._weights(self._names[role].format(layer=self._layer))

    def has(self, role: str) -> bool:
        return role in self._names


def _megatron_qkv(read: _Layer, x: Tensor, a: Architecture) -> tuple[Tensor, Tensor, Tensor]:
    """Each [tokens, heads, head_dim]; linear_qkv is [groups, (queries of the group, key, value), head_dim]."""
    groups, d = a.num_key_value_heads, a.head_dim
    per_group = a.num_attention_heads // groups
    mixed = F.linear(x, read("qkv"), _bias(read, "qkv_bias", a.qkv_bias)).view(len(x), groups, per_group + 2, d)
    q, k, v = mixed.split([per_group, 1, 1], dim=2)
    return q.reshape(len(x), -1, d), k.reshape(len(x), groups, d), v.reshape(len(x), groups, d)


def _split_qkv(read: _Layer, x: Tensor, a: Architecture) -> tuple[Tensor, Tensor, Tensor]:
    if read.has("qkv"):  # Qwen1, Phi-3: [q; k; v]
        heads = (a.num_attention_heads, a.num_key_value_heads, a.num_key_value_heads)
        fused = F.linear(x, read("qkv"), _bias(read, "qkv_bias", a.qkv_bias))
        q, k, v = fused.split([number * a.head_dim for number in heads], -1)
    else:
        q, k, v = (F.linear(x, read(n), _bias(read, f"{n}_bias", a.qkv_bias)) for n in ("q", "k", "v"))
    return q.view(len(x), -1, a.head_dim), k.view(len(x), -1, a.head_dim), v.view(len(x), -1, a.head_dim)


def _bias(read: _Layer, role: str, has: bool) -> Tensor | None:
    return read(role) if has else None


def _gate_up(read: _Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    if read.has("gate_up"):  # Megatron, Phi-3, GLM: [gate; up]
        gate, up = F.linear(x, read("gate_up")).chunk(2, -1)
        return gate, up
    return F.linear(x, read("gate")), F.linear(x, read("up"))


def _rms_norm(x: Tensor, weight: Tensor, a: Architecture) -> Tensor:
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + a.norm_epsilon)
    return normed * (1 + weight if a.zero_centered_norms else weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, a: Architecture) -> Tensor:
    """The first `rotary_dim` dimensions of each head: halves against each other, or even against odd."""
    rotated, rest = x[..., : a.rotary_dim], x[..., a.rotary_dim :]
    one, two = (rotated[..., ::2], rotated[..., 1::2]) if a.rotary_interleaved else rotated.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = (one * cos - two * sin, two * cos + one * sin)
    joined = torch.stack(turned, -1).flatten(-2) if a.rotary_interleaved else torch.cat(turned, -1)
    return torch.cat([joined, rest], -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, a: Architecture, window: int | None) -> Tensor:
    """[tokens, heads * head_dim], causal, within the sliding window where the layer has one."""
    tokens = len(q)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    seen = (distance >= 0) & (distance < (window or tokens))
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=a.attention_scale, enable_gqa=True)
    return mixed[0].transpose(0, 1).reshape(tokens, -1)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
_LLAMA = {
    "embedding": "model.embed_tokens.weight",
    "norm1": "model.layers.{layer}.input_layernorm.weight",
    **{n: f"model.layers.{{layer}}.self_attn.{n}_proj.weight" for n in "qkv"},
    **{f"{n}_bias": f"model.layers.{{layer}}.self_attn.{n}_proj.bias" for n in "qkv"},
    "q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    "output": "model.layers.{layer}.self_attn.o_proj.weight",
    "output_bias": "model.layers.{layer}.self_attn.o_proj.bias",
    "norm2": "model.layers.{layer}.post_attention_layernorm.weight",
    "expert_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "up": "model.layers.{layer}.mlp.up_proj.weight",
    "down": "model.layers.{layer}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_GATE_UP = {"gate_up": "model.layers.{layer}.mlp.gate_up_proj.weight"}
_PHI3 = {
    **_LLAMA,
    **_GATE_UP,
    "qkv": "model.layers.{layer}.self_attn.qkv_proj.weight",
}
_GLM4 = {
    **_LLAMA,
    **_GATE_UP,
    "post_norm1": "model.layers.{layer}.post_self_attn_layernorm.weight",
    "post_norm2": "model.layers.{layer}.post_mlp_layernorm.weight",
}
_GEMMA = {
    **_LLAMA,
    "post_norm1": "model.layers.{layer}.post_attention_layernorm.weight",
    "norm2": "model.layers.{layer}.pre_feedforward_layernorm.weight",
    "post_norm2": "model.layers.{layer}.post_feedforward_layernorm.weight",
}
_QWEN1 = {
    "embedding": "transformer.wte.weight",
    "norm1": "transformer.h.{layer}.ln_1.weight",
    "qkv": "transformer.h.{layer}.attn.c_attn.weight",
    "qkv_bias": "transformer.h.{layer}.attn.c_attn.bias",
    "output": "transformer.h.{layer}.attn.c_proj.weight",
    "norm2": "transformer.h.{layer}.ln_2.weight",
    "gate": "transformer.h.{layer}.mlp.w2.weight",
    "up": "transformer.h.{layer}.mlp.w1.weight",
    "down": "transformer.h.{layer}.mlp.c_proj.weight",
    "final_norm": "transformer.ln_f.weight",
    "head": "lm_head.weight",
}
_MEGATRON = {
    "embedding": "embedding.word_embeddings.weight",
    "norm1": "decoder.layers.{layer}.self_attention.linear_qkv.layer_norm_weight",
    "qkv": "decoder.layers.{layer}.self_attention.linear_qkv.weight",
    "qkv_bias": "decoder.layers.{layer}.self_attention.linear_qkv.bias",
    "q_norm": "decoder.layers.{layer}.self_attention.q_layernorm.weight",
    "k_norm": "decoder.layers.{layer}.self_attention.k_layernorm.weight",
    "output": "decoder.layers.{layer}.self_attention.linear_proj.weight",
    "output_bias": "decoder.layers.{layer}.self_attention.linear_proj.bias",
    "post_norm1": "decoder.layers.{layer}.self_attention.linear_proj.post_layernorm.weight",
    "norm2": "decoder.layers.{layer}.mlp.linear_fc1.layer_norm_weight",
    "expert_norm": "decoder.layers.{layer}.pre_mlp_layernorm.weight",
    "gate_up": "decoder.layers.{layer}.mlp.linear_fc1.weight",
    "down": "decoder.layers.{layer}.mlp.linear_fc2.weight",
    "post_norm2": "decoder.layers.{layer}.mlp.linear_fc2.post_layernorm.weight",
    "final_norm": "decoder.final_layernorm.weight",
    "head": "output_layer.weight",
}
_NAMES = {"qwen": _QWEN1, "phi3": _PHI3, "glm": _GLM4, "glm4": _GLM4, "gemma3_text": _GEMMA}
