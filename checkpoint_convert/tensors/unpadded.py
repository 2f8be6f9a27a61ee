"""A Megatron source at the model's true sizes: padding of vocabulary and heads hidden, and checked to be inert."""

import math
import re
from pathlib import Path

from checkpoint_convert.errors import UserError
from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo
from checkpoint_convert.tensors.torch_dist import TorchDistSource

VOCABULARY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight")
HEAD_ROWS = re.compile(r"decoder\.layers\.\d+\.self_attention\.linear_qkv(\.weight|\.bias|_adapter\.lora_B)")
HEAD_COLUMNS = re.compile(r"decoder\.layers\.\d+\.self_attention\.linear_proj(\.weight|_adapter\.lora_A)")
STRETCH_ROWS = 256


class Unpadded:
    """
    `source` with the shapes of `expected`. Vocabulary rows beyond the true ones are dropped: no token reaches them.
    Added heads (rows at the end of linear_qkv, columns at the end of linear_proj, and where their adapters have the
    same) must be exactly zero, else UserError: dropping them would change the model.
    """

    def __init__(self, source: TorchDistSource, expected: list[TensorRecipe]) -> None:
        self._source = source
        self.tensors: dict[str, TensorInfo] = dict(source.tensors)
        for recipe in expected:
            stored = source.tensors.get(recipe.name)
            if stored is not None and _is_padded(recipe, stored.shape):
                self.tensors[recipe.name] = TensorInfo(recipe.shape, stored.dtype)
                if recipe.name not in VOCABULARY_ROWS:
                    self._check_zero(recipe, stored.shape)

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        self._source.read_block(name, first, rows, 0, math.prod(self.tensors[name].shape[1:]), out)

    def files(self) -> list[Path]:
        return self._source.files()

    def close(self) -> None:
        self._source.close()

    def _check_zero(self, recipe: TensorRecipe, stored: tuple[int, ...]) -> None:
        rows, columns = recipe.shape[0], math.prod(recipe.shape[1:])
        all_columns = math.prod(stored[1:])
        if stored[0] > rows:
            blocks = [(first, 0, all_columns) for first in range(rows, stored[0], STRETCH_ROWS)]
        else:
            blocks = [(first, columns, all_columns - columns) for first in range(0, rows, STRETCH_ROWS)]
        width = ITEM_BYTES[self._source.tensors[recipe.name].dtype]
        for first, first_column, num_columns in blocks:
            count = min(STRETCH_ROWS, stored[0] - first)
            out = bytearray(count * num_columns * width)
            self._source.read_block(recipe.name, first, count, first_column, num_columns, memoryview(out))
            if any(out):
                raise UserError(
                    f"{self._source.folder}: {recipe.name} is {list(stored)} where config.json says "
                    f"{list(recipe.shape)}, and what is beyond is not zero; take the config.json of this model"
                )


def _is_padded(recipe: TensorRecipe, stored: tuple[int, ...]) -> bool:
    shape = recipe.shape
    if len(stored) != len(shape) or stored == shape:
        return False
    more_rows = stored[0] > shape[0] and stored[1:] == shape[1:]
    if recipe.name in VOCABULARY_ROWS or HEAD_ROWS.fullmatch(recipe.name):
        return more_rows
    return bool(HEAD_COLUMNS.fullmatch(recipe.name)) and stored[0] == shape[0] and stored[1] > shape[1]
