"""
transformers 5 holds a layer's experts in two tensors, `mlp.experts.gate_up_proj` [experts, 2 ffn, hidden] and
`mlp.experts.down_proj` [experts, hidden, ffn], and saves them so on request. They are read as the tensors of single
experts that published checkpoints have, which every version loads, and which are what we write.
"""

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from dpop_base.architectures.architecture import Architecture

# Of each family: the prefix in a layer of its single experts' names, and those of gate, up and down projection.
_NAMES = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


def split_fused_experts(source: HuggingFaceSource, a: Architecture) -> None:
    """Gives every expert of fused tensors its own names; what is of another shape, or there twice, is left."""
    if a.experts is None:
        return
    expected = {recipe.name for recipe in from_megatron(RULES[a.family], a)}
    prefix, (gate, up, down) = _NAMES[a.family]
    count, ffn, hidden = a.experts.count, a.experts.ffn_hidden_size, a.hidden_size
    for layer in range(a.num_layers):
        fused, single = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.{prefix}."
        expert = single + "experts.{expert}.{name}.weight"
        for name, parts in (("gate_up_proj", {gate: ffn, up: ffn}), ("down_proj", {down: hidden})):
            columns = hidden if name == "gate_up_proj" else ffn
            info = source.tensors.get(f"{fused}experts.{name}")
            names = {expert.format(expert=e, name=part): rows for e in range(count) for part, rows in parts.items()}
            if (
                info is not None
                and info.shape == (count, sum(parts.values()), columns)
                and not names.keys() & source.tensors.keys()
            ):
                source.split(f"{fused}experts.{name}", names, columns)
        router = f"{single}gate.weight"
        if router in expected and router not in source.tensors and f"{fused}gate.weight" in source.tensors:
            source.rename(f"{fused}gate.weight", router)
