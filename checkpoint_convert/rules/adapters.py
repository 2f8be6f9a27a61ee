"""
LoRA adapters of Megatron's linears, and what they are in a family's terms.

An adapter adds B A x to a linear W x. Where a linear fuses several of the family's (q, k and v; gate and up), each of
them gets the same A and the rows of B that stand where its own rows stand in W: exactly the same function.
"""

import re

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import TensorRecipe, TensorRule, from_megatron, to_megatron
from checkpoint_convert.rules.segments import Segment
from dpop_base.architectures.architecture import Architecture

LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
ADAPTER = re.compile(r".+\.(linear_\w+)_adapter\.lora_[AB]")
PEFT = "base_model.model."  # before the names of a model that PEFT has wrapped


def adapter_names(weight: str) -> tuple[str, str]:
    """Names of A and B in a Megatron checkpoint, beside `weight` (`...mlp.linear_fc1.weight`)."""
    linear = weight.removesuffix(".weight")
    return f"{linear}_adapter.lora_A", f"{linear}_adapter.lora_B"


def adapted_weights(rules: tuple[TensorRule, ...], a: Architecture, linears: frozenset[str]) -> list[TensorRecipe]:
    """Recipes of the Megatron weights that have adapters, layer by layer."""
    endings = tuple(f".{linear}.weight" for linear in linears)
    return [recipe for recipe in to_megatron(rules, a) if recipe.name.endswith(endings)]


def adapter_tensors(
    rules: tuple[TensorRule, ...], a: Architecture, linears: frozenset[str], rank: int
) -> dict[str, tuple[int, int]]:
    """Shape of every A [rank, inputs] and B [outputs, rank] in a Megatron checkpoint."""
    shapes: dict[str, tuple[int, int]] = {}
    for recipe in adapted_weights(rules, a, linears):
        lora_a, lora_b = adapter_names(recipe.name)
        shapes[lora_a], shapes[lora_b] = (rank, recipe.shape[1]), (recipe.shape[0], rank)
    return shapes


def to_peft(rules: tuple[TensorRule, ...], a: Architecture, linears: frozenset[str], rank: int) -> list[TensorRecipe]:
    """Recipes of a PEFT folder's tensors from Megatron's adapters."""
    adapted = {recipe.name for recipe in adapted_weights(rules, a, linears)}
    recipes = []
    for recipe in from_megatron(rules, a):
        weight = recipe.segments[0].source
        if weight in adapted:
            lora_a, lora_b = adapter_names(weight)
            module = PEFT + recipe.name.removesuffix(".weight")
            rows = tuple(Segment(lora_b, segment.start, segment.rows) for segment in recipe.segments)
            whole = (Segment(lora_a, 0, rank),)
            recipes.append(TensorRecipe(f"{module}.lora_A.weight", (rank, recipe.shape[1]), whole))
            recipes.append(TensorRecipe(f"{module}.lora_B.weight", (recipe.shape[0], rank), rows))
    return recipes


def peft_obstacle(a: Architecture, linears: frozenset[str]) -> str | None:
    """Why PEFT cannot put such adapters on a model, in words; None where it can.

    transformers stacks experts, and PEFT takes every `gate_proj`, `up_proj` and `down_proj` of such a model for theirs.
    """
    if a.experts is None or not linears & {"linear_fc1", "linear_fc2"}:
        return None
    others = "its shared experts" if a.experts.shared_ffn_hidden_size else "its dense layers"
    if not (a.experts.shared_ffn_hidden_size or a.experts.dense_layers):
        return None
    return f"PEFT loads adapters of a {a.family} model's experts, but then none of the feed-forward of {others}"


def peft_modules(rules: tuple[TensorRule, ...], a: Architecture, linears: frozenset[str]) -> list[str]:
    """PEFT's `target_modules`: the shortest endings (`q_proj`, `attn.c_proj`) that name these modules and no others."""
    adapted = {recipe.name for recipe in adapted_weights(rules, a, linears)}
    endings: dict[str, set[bool]] = {}
    modules: dict[str, list[str]] = {}
    for recipe in from_megatron(rules, a):
        parts = recipe.name.removesuffix(".weight").split(".")
        wanted = recipe.segments[0].source in adapted
        candidates = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        for candidate in candidates:
            endings.setdefault(candidate, set()).add(wanted)
        if wanted:
            modules[recipe.name] = candidates
    shortest = (next(c for c in candidates if endings[c] == {True}) for candidates in modules.values())
    return list(dict.fromkeys(shortest))


def linears_of_module(name: str) -> list[str]:
    """The Megatron linears that hold modules of this last name in any family (`q_proj` is in `linear_qkv`)."""
    found = [
        linear
        for rules in RULES.values()
        for rule in rules
        for linear in LINEARS
        if rule.megatron.endswith(f".{linear}.weight") and any(n.endswith(f".{name}.weight") for n in rule.family)
    ]
    return list(dict.fromkeys(found))
