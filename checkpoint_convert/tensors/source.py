"""What a conversion needs of a checkpoint that it reads: shapes, row ranges as raw bytes, and whether it changed."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from dpop_base.checksums import file_digests
from dpop_base.errors import UserError

SMALL_BYTES = 1 << 20  # of a file that is written anew as often as not: config.json


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    dtype: str  # "fp32", "bf16" or "fp16"; another name for what cannot be converted

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class TensorSource(Protocol):
    """A checkpoint as named tensors."""

    tensors: dict[str, TensorInfo]

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        """Fills `out`, of exactly `rows * row_bytes` bytes, with rows `[first, first + rows)`. Raises UserError."""
        ...

    def files(self) -> list[Path]:
        """The files that hold the tensors: their sizes and times tell whether the source changed."""
        ...

    def close(self) -> None:
        """Closes the files; nothing can be read any more."""
        ...


@dataclass(frozen=True)
class FileState:
    """What tells one state of a file from another: a small file's content, a large one's time."""

    path: str
    num_bytes: int
    modified: str

    @classmethod
    def of(cls, path: Path) -> "FileState":
        try:
            status = path.stat()
            small = status.st_size <= SMALL_BYTES
            modified = file_digests([path], workers=1)[path] if small else str(status.st_mtime_ns)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore it") from None
        return cls(str(path), status.st_size, modified)


def check_unchanged(states: list[FileState]) -> None:
    """Raises UserError for the first file that is no longer what it was."""
    for state in states:
        if FileState.of(Path(state.path)) != state:
            raise UserError(f"{state.path}: changed while it was being converted; leave the source alone and run again")


def open_to_read(path: Path) -> int:
    """Returns a descriptor of a source's file. Raises UserError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); download it again") from None


def read_exactly(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
    """
    Fills `out` from the file at `offset`. Reading, not mapping: a source that is truncated underneath is then an
    error to report, where a mapped page would end the process with SIGBUS.
    """
    done = 0
    while done < len(out):
        count = os.preadv(descriptor, [out[done:]], offset + done)
        if count == 0:
            raise UserError(f"{path}: ends at byte {offset + done}, before the data it announces; download it again")
        done += count
