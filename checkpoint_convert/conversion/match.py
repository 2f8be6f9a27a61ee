"""The check that nothing is silent: every tensor of the source is used, every tensor needed is there, once each."""

from collections.abc import Callable, Iterable
from pathlib import Path

from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo
from dpop_base.errors import UserError

SHOWN = 5


def check_all_used(
    folder: Path,
    tensors: dict[str, TensorInfo],
    expected: Iterable[TensorRecipe],
    *,
    may_be_left: Callable[[str], bool],
) -> None:
    """Raises UserError that lists what is missing, unused or of another shape."""
    shapes = {recipe.name: recipe.shape for recipe in expected}
    missing = sorted(set(shapes) - set(tensors))
    unused = sorted(name for name in set(tensors) - set(shapes) if not may_be_left(name))
    wrong = sorted(name for name in set(shapes) & set(tensors) if tensors[name].shape != shapes[name])
    problems = []
    if missing:
        problems.append(f"lacks {some_of(missing)}")
    if unused:
        problems.append(f"holds {some_of(unused)}, which the architecture has no place for")
    if wrong:
        shown = [f"{n} {list(tensors[n].shape)} instead of {list(shapes[n])}" for n in wrong]
        problems.append(f"has other shapes than config.json says: {some_of(shown)}")
    odd = sorted(n for n in set(shapes) & set(tensors) if tensors[n].dtype not in ITEM_BYTES)
    if odd:
        shown = [f"{name} in {tensors[name].dtype}" for name in odd]
        problems.append(f"stores {some_of(shown)} where only {', '.join(ITEM_BYTES)} can be converted")
    if problems:
        raise UserError(f"{folder}: {'; it '.join(problems)}; check that config.json belongs to these weights")


def common_dtype(names: Iterable[str], tensors: dict[str, TensorInfo], requested: str | None) -> str:
    """The dtype of a target tensor made of these sources. Raises UserError where they differ and none is requested."""
    if requested is not None:
        return requested
    dtypes = {tensors[name].dtype: name for name in names}
    if len(dtypes) > 1:
        shown = ", ".join(f"{name} is {dtype}" for dtype, name in sorted(dtypes.items()))
        raise UserError(f"{shown}, and Megatron keeps them in one tensor; choose one with --dtype")
    return next(iter(dtypes))


def some_of(names: list[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
