"""A source seen through recipes: its rows rearranged under the recipes' names, as they are read."""

import math
from pathlib import Path

from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.rules.segments import slice_segments
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo, TensorSource


class Renamed:
    """The tensors that `recipes` make of `source`."""

    def __init__(self, source: TensorSource, recipes: list[TensorRecipe]) -> None:
        self._source = source
        self._recipes = {recipe.name: recipe for recipe in recipes}
        self.tensors = {
            recipe.name: TensorInfo(recipe.shape, source.tensors[recipe.segments[0].source].dtype) for recipe in recipes
        }

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        recipe = self._recipes[name]
        row_bytes = math.prod(recipe.shape[1:]) * ITEM_BYTES[self.tensors[name].dtype]
        position = 0
        for segment in slice_segments(recipe.segments, first, rows):
            part = out[position : position + segment.rows * row_bytes]
            self._source.read_rows(segment.source, segment.start, segment.rows, part)
            position += len(part)

    def files(self) -> list[Path]:
        return self._source.files()

    def close(self) -> None:
        self._source.close()
