"""A rule: one Megatron tensor, the tensors of the family that it is made of, and how."""

from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_convert.rules.layouts import Layout, Size
from checkpoint_convert.rules.segments import Segment, invert, merge_adjacent
from dpop_base.architectures.architecture import Architecture


def always(a: Architecture) -> bool:
    return True


Layers = Callable[[Architecture, int], bool]


def every_layer(a: Architecture, layer: int) -> bool:
    return True


def has_experts(a: Architecture, layer: int) -> bool:
    return a.has_experts(layer)


@dataclass(frozen=True)
class TensorRule:
    """
    `{layer}` in the names stands for each layer in turn, and `{expert}` for each of its experts. `columns` is None for
    vectors.
    """

    megatron: str
    family: tuple[str, ...]
    layout: Layout
    columns: Size | None = None
    when: Callable[[Architecture], bool] = always
    layers: Layers = every_layer


@dataclass(frozen=True)
class TensorRecipe:
    """One tensor of a conversion's target: its shape and the source rows that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class _Instance:
    """A rule for one layer and one expert, where it has them."""

    rule: TensorRule
    layer: int = 0
    expert: int = 0


def to_megatron(rules: tuple[TensorRule, ...], a: Architecture) -> list[TensorRecipe]:
    """Recipes of all Megatron tensors (`decoder.layers.N....`), layer by layer, from the family's tensors."""
    return [_recipe(instance, a) for instance in _instances(rules, a)]


def from_megatron(rules: tuple[TensorRule, ...], a: Architecture) -> list[TensorRecipe]:
    """Recipes of all the family's tensors from Megatron's: the exact inverse of `to_megatron`."""
    recipes = []
    for instance in _instances(rules, a):
        forward = _recipe(instance, a)
        for name, segments in invert(forward.name, forward.segments).items():
            rows = sum(segment.rows for segment in segments)
            recipes.append(TensorRecipe(name, (rows, *forward.shape[1:]), segments))
    return recipes


def _instances(rules: tuple[TensorRule, ...], a: Architecture) -> list[_Instance]:
    """Returns them in the order of the model: what precedes the layers in the table, each layer's, what follows."""
    rules = tuple(rule for rule in rules if rule.when(a))
    per_layer = [rule for rule in rules if "{layer}" in rule.megatron]
    first = rules.index(per_layer[0])
    last = rules.index(per_layer[-1])
    return (
        [_Instance(rule) for rule in rules[:first]]
        + [
            instance
            for layer in range(a.num_layers)
            for rule in per_layer
            if rule.layers(a, layer)
            for instance in _of_layer(rule, a, layer)
        ]
        + [_Instance(rule) for rule in rules[last + 1 :]]
    )


def _of_layer(rule: TensorRule, a: Architecture, layer: int) -> list[_Instance]:
    if a.experts is None or "{expert}" not in rule.megatron:
        return [_Instance(rule, layer)]
    return [_Instance(rule, layer, expert) for expert in range(a.experts.count)]


def _recipe(instance: _Instance, a: Architecture) -> TensorRecipe:
    rule = instance.rule

    def named(name: str) -> str:
        return name.format(layer=instance.layer, expert=instance.expert)

    segments = merge_adjacent(Segment(named(rule.family[i]), start, rows) for i, start, rows in rule.layout(a))
    rows = sum(segment.rows for segment in segments)
    shape = (rows,) if rule.columns is None else (rows, rule.columns(a))
    return TensorRecipe(named(rule.megatron), shape, segments)
