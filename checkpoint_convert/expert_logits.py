"""A layer of experts in plain PyTorch and fp32, one expert's weights at a time (`checkpoint_convert.logits`)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpop_base.architectures.architecture import Architecture

Read = Callable[[str], Tensor]


def mixture_of_experts(read: Read, a: Architecture, layer: int, x: Tensor, *, megatron: bool) -> Tensor:
    """fp32 [tokens, hidden] to the same, with Megatron's names or the family's."""
    assert a.experts is not None
    prefix = f"decoder.layers.{layer}.mlp." if megatron else _family_prefix(a, layer)
    probabilities = F.linear(x, read(prefix + ("router.weight" if megatron else "gate.weight"))).softmax(-1)
    shares, chosen = probabilities.topk(a.experts.per_token)  # [tokens, per_token]
    if a.experts.shares_sum_to_one:
        shares = shares / shares.sum(-1, keepdim=True)
    result = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, order = torch.where(chosen == expert)
        name = f"{prefix}experts.{'experts.' if megatron else ''}{expert}."
        given = _feed_forward(read, a, name, x[token], megatron=megatron)
        result.index_add_(0, token, given * shares[token, order, None])
    if a.experts.shared_ffn_hidden_size is not None:
        shared = prefix + ("shared_experts." if megatron else "shared_expert.")
        gate = shared + "gate_weight" if megatron else prefix + "shared_expert_gate.weight"
        result += F.linear(x, read(gate)).sigmoid() * _feed_forward(read, a, shared, x, megatron=megatron)
    return result


def _family_prefix(a: Architecture, layer: int) -> str:
    return f"model.layers.{layer}.{'block_sparse_moe' if a.family == 'mixtral' else 'mlp'}."


def _feed_forward(read: Read, a: Architecture, name: str, x: Tensor, *, megatron: bool) -> Tensor:
    if megatron:
        gate, up = F.linear(x, read(name + "linear_fc1.weight")).chunk(2, -1)
        return F.linear(F.silu(gate) * up, read(name + "linear_fc2.weight"))
    names = ("w1", "w3", "w2") if a.family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    gate, up = (F.linear(x, read(f"{name}{part}.weight")) for part in names[:2])
    return F.linear(F.silu(gate) * up, read(f"{name}{names[2]}.weight"))
