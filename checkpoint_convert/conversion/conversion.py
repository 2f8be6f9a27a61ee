"""A conversion, planned: what it reads, what it writes, and what tells it from another."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from checkpoint_convert.conversion.journal import Journal
from checkpoint_convert.conversion.plan import OutputFile, Piece
from checkpoint_convert.tensors.source import FileState, TensorSource

# What begins a file, and how a piece is put into it; these return the CRC-32 of what was begun with (None: of nothing),
# and of the piece's elements.
Begin = Callable[[BinaryIO, OutputFile], int | None]
WritePiece = Callable[[BinaryIO, Piece, Iterable[memoryview]], int]

FORMAT = 2  # counted up whenever the same source would give other bytes


@dataclass(frozen=True)
class Conversion:
    """One conversion, planned. File names in `files` are relative to `target`."""

    command: str
    source: TensorSource
    states: list[FileState]  # of every file the result depends on
    target: Path
    files: list[OutputFile]
    begin: Begin
    write_piece: WritePiece
    finish: Callable[[Journal], None]  # everything but tensors: metadata, index, config, tokenizer

    @property
    def fingerprint(self) -> str:
        """Equal for two conversions that would write the same bytes from the same source."""
        # However its path is spelled, a file is the same.
        states = [{**asdict(state), "path": str(Path(state.path).resolve())} for state in self.states]
        return hashlib.sha256(json.dumps([self.layout, states]).encode()).hexdigest()

    @property
    def layout(self) -> str:
        """Equal for two conversions that would write tensors of the same shapes from the same files, whatever is in
        these."""
        sources = [str(Path(state.path).resolve()) for state in self.states]
        files = [(f.name, [(p.tensor, p.dtype, p.first_row, p.shape) for p in f.pieces]) for f in self.files]
        return hashlib.sha256(json.dumps([FORMAT, sources, files]).encode()).hexdigest()
