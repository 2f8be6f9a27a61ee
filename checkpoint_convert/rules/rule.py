"""A rule: one Megatron tensor, the tensors of the family that it is made of, and how."""

from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_convert.rules.layouts import Layout, Size
from checkpoint_convert.rules.segments import Segment, invert, merge_adjacent
from dpop_base.architectures.architecture import Architecture


def always(a: Architecture) -> bool:
    return True


@dataclass(frozen=True)
class TensorRule:
    """`{layer}` in the names stands for each layer in turn. `columns` is None for vectors."""

    megatron: str
    family: tuple[str, ...]
    layout: Layout
    columns: Size | None = None
    when: Callable[[Architecture], bool] = always


@dataclass(frozen=True)
class TensorRecipe:
    """One tensor of a conversion's target: its shape and the source rows that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]


def to_megatron(rules: tuple[TensorRule, ...], a: Architecture) -> list[TensorRecipe]:
    """Recipes of all Megatron tensors (`decoder.layers.N....`), layer by layer, from the family's tensors."""
    return [_recipe(rule, a, layer) for rule, layer in _instances(rules, a)]


def from_megatron(rules: tuple[TensorRule, ...], a: Architecture) -> list[TensorRecipe]:
    """Recipes of all the family's tensors from Megatron's: the exact inverse of `to_megatron`."""
    recipes = []
    for rule, layer in _instances(rules, a):
        forward = _recipe(rule, a, layer)
        for name, segments in invert(forward.name, forward.segments).items():
            rows = sum(segment.rows for segment in segments)
            recipes.append(TensorRecipe(name, (rows, *forward.shape[1:]), segments))
    return recipes


def _instances(rules: tuple[TensorRule, ...], a: Architecture) -> list[tuple[TensorRule, int]]:
    """Yields them in the order of the model: what precedes the layers in the table, each layer's, what follows them."""
    rules = tuple(rule for rule in rules if rule.when(a))
    per_layer = [rule for rule in rules if "{layer}" in rule.megatron]
    first = rules.index(per_layer[0])
    last = rules.index(per_layer[-1])
    return (
        [(rule, 0) for rule in rules[:first]]
        + [(rule, layer) for layer in range(a.num_layers) for rule in per_layer]
        + [(rule, 0) for rule in rules[last + 1 :]]
    )


def _recipe(rule: TensorRule, a: Architecture, layer: int) -> TensorRecipe:
    names = [name.format(layer=layer) for name in rule.family]
    segments = merge_adjacent(Segment(names[i], start, rows) for i, start, rows in rule.layout(a))
    rows = sum(segment.rows for segment in segments)
    shape = (rows,) if rule.columns is None else (rows, rule.columns(a))
    return TensorRecipe(rule.megatron.format(layer=layer), shape, segments)
