"""
Megatron's names of tensors, one for each layer and expert (`decoder.layers.3.mlp.experts.experts.7.linear_fc1.weight`),
and its keys on disk, in which layers that are alike, and always a layer's experts, are stacked
(`decoder.layers.mlp.experts.experts.linear_fc1.weight` of [layers, experts, ...]).
"""

import itertools
import re
from collections.abc import Iterator

LAYERS = "decoder.layers."
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_STACK = re.compile(r"decoder\.layers\.(?!\d+\.)(.+)")
_EXPERT = re.compile(r"(.+\.experts\.experts)\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"(.+\.experts\.experts)\.(?!\d+\.)(.+)")


def stacked_key(tensor: str, *, layers_are_alike: bool) -> tuple[str, tuple[int, ...]]:
    """A tensor's key on disk, and its place in the stack: its layer, its expert, as far as it has them."""
    key = tensor
    place: tuple[int, ...] = ()
    if layers_are_alike and (layer := _LAYER.fullmatch(key)):
        key, place = LAYERS + layer[2], (int(layer[1]),)
    if expert := _EXPERT.fullmatch(key):
        key, place = f"{expert[1]}.{expert[3]}", (*place, int(expert[2]))
    return key, place


def stacked_axes(key: str) -> int:
    """How many of a key's leading axes count layers and experts."""
    return int(bool(_STACK.fullmatch(key))) + int(bool(_EXPERTS.fullmatch(key)))


def tensors_of(key: str, sizes: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that a key holds, and the place of each; `sizes`: of its stacked axes."""
    for place in itertools.product(*map(range, sizes)):
        name, left = key, list(place)
        if stack := _STACK.fullmatch(key):
            name = f"{LAYERS}{left.pop(0)}.{stack[1]}"
        if experts := _EXPERTS.fullmatch(name):
            name = f"{experts[1]}.{left.pop(0)}.{experts[2]}"
        yield name, place
