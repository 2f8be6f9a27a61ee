"""A Megatron source at the model's true sizes: padding of vocabulary and heads hidden, and checked to be inert."""

import math
from pathlib import Path

from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.checkpoint_names import HEAD_COLUMNS, HEAD_ROWS
from dpop_base.errors import UserError

VOCABULARY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight")
STRETCH_ROWS = 256


class Unpadded:
    """
    `source` with the shapes of `expected`. Vocabulary rows beyond the true ones are dropped where it is known that no
    token reaches them, or where they are zero, or are as many as Megatron pads with: their number is then in
    `dropped_rows`. Added heads (rows at the end of linear_qkv, columns at the end of linear_proj, and where their
    adapters have the same) must be exactly zero. Anything else is a UserError: dropping it would change the model.
    """

    def __init__(
        self, source: TorchDistSource, expected: list[TensorRecipe], *, vocabulary_is_padded: bool = False
    ) -> None:
        self._source = source
        self.tensors: dict[str, TensorInfo] = dict(source.tensors)
        self.dropped_rows = 0
        for recipe in expected:
            stored = source.tensors.get(recipe.name)
            if stored is not None and _is_padded(recipe, stored.shape):
                self.tensors[recipe.name] = TensorInfo(recipe.shape, stored.dtype)
                if not (vocabulary_is_padded and recipe.name in VOCABULARY_ROWS):
                    self._check_beyond(recipe, stored.shape)

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        self._source.read_block(name, first, rows, 0, math.prod(self.tensors[name].shape[1:]), out)

    def files(self) -> list[Path]:
        return self._source.files()

    def close(self) -> None:
        self._source.close()

    def _check_beyond(self, recipe: TensorRecipe, stored: tuple[int, ...]) -> None:
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
                self._judge(recipe, stored)
                return

    def _judge(self, recipe: TensorRecipe, stored: tuple[int, ...]) -> None:
        """Decides what becomes of values beyond the true size that are not zero."""
        fix = "take the config.json of this model"
        if recipe.name in VOCABULARY_ROWS:
            if stored[0] in megatron_paddings(recipe.shape[0]):
                self.dropped_rows = stored[0] - recipe.shape[0]
                return
            fix = f"they may be trained tokens: set vocab_size in config.json to {stored[0]}, which keeps them"
        raise UserError(
            f"{self._source.folder}: {recipe.name} is {list(stored)} where config.json says {list(recipe.shape)}, and "
            f"what is beyond is not zero; {fix}"
        )


def megatron_paddings(vocab_size: int) -> set[int]:
    """The sizes to which Megatron pads a vocabulary: multiples of 128, its default, times a power of two of ranks."""
    multiples = [128 << power for power in range(7)]
    return {-(-vocab_size // multiple) * multiple for multiple in multiples}


def _is_padded(recipe: TensorRecipe, stored: tuple[int, ...]) -> bool:
    shape = recipe.shape
    if len(stored) != len(shape) or stored == shape:
        return False
    more_rows = stored[0] > shape[0] and stored[1:] == shape[1:]
    if recipe.name in VOCABULARY_ROWS or recipe.name.endswith(HEAD_ROWS):
        return more_rows
    return recipe.name.endswith(HEAD_COLUMNS) and stored[0] == shape[0] and stored[1] > shape[1]
