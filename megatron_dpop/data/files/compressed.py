"""Files of text that may be compressed."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow

from dpop_base.errors import UserError, first_line

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")


def file_suffix(path: Path) -> str:
    """The suffix that says what a file is: `.jsonl` of `pairs.jsonl.gz` too."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's content, decompressed where its name says that it is compressed; UserError where it is damaged."""
    try:
        with _open(path) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException, OSError) as error:
        if path.suffix.lower() not in COMPRESSIONS:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
        raise UserError(f"{path}: not a whole {path.suffix} file ({first_line(error)}); compress it again") from None


def _open(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20))
    return path.open("rb")
