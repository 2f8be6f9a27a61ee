"""A conversion as data: which files will be written, of which pieces, each piece of which source rows."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.rules.segments import Segment, slice_segments
from checkpoint_convert.tensors.dtypes import ITEM_BYTES

# What is stored, checked and read again as one: a chunk of a torch_dist checkpoint, a checksum of a manifest.
PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """Rows `[first_row, first_row + rows)` of a target tensor: what a worker makes and writes at a time."""

    tensor: str
    dtype: str
    first_row: int
    shape: tuple[int, ...]  # of the piece: (rows, ...)
    segments: tuple[Segment, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class OutputFile:
    name: str
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)


def cut(recipe: TensorRecipe, dtype: str, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """A tensor as pieces of at most `piece_bytes` (but at least a row)."""
    total, rest = recipe.shape[0], recipe.shape[1:]
    step = max(1, piece_bytes // max(1, math.prod(rest) * ITEM_BYTES[dtype]))
    pieces = []
    for first in range(0, total, step):
        rows = min(step, total - first)
        segments = tuple(slice_segments(recipe.segments, first, rows))
        pieces.append(Piece(recipe.name, dtype, first, (rows, *rest), segments))
    return pieces


def group(tensors: Iterable[list[Piece]], file_bytes: int) -> list[tuple[Piece, ...]]:
    """Whole tensors, in order, gathered into files of at most about `file_bytes`."""
    files: list[list[Piece]] = []
    filled = file_bytes
    for pieces in tensors:
        size = sum(piece.num_bytes for piece in pieces)
        if filled + size > file_bytes and filled > 0:
            files.append([])
            filled = 0
        files[-1].extend(pieces)
        filled += size
    return [tuple(file) for file in files]


def target_file_bytes(total_bytes: int) -> int:
    """File size that gives each of a few workers several files, and that is convenient to copy and to write again."""
    return min(2 << 30, max(512 << 20, total_bytes // 12))


def main_dtype(files: list[OutputFile]) -> str:
    """The dtype of most bytes: what config.json announces."""
    count: Counter[str] = Counter()
    for file in files:
        for piece in file.pieces:
            count[piece.dtype] += piece.num_bytes
    return count.most_common(1)[0][0]
