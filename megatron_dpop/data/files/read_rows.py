"""Rows of one data file, one at a time, each with the words that say where it stands."""

from collections.abc import Callable, Container, Iterator
from pathlib import Path

from dpop_base.errors import UserError

from .compressed import COMPRESSIONS, file_suffix
from .located_row import LocatedRow
from .read_arrow import read_arrow, read_parquet
from .read_csv import read_csv, read_tsv
from .read_json import read_json


def read_rows(path: Path, columns: Container[str] | None = None) -> Iterator[LocatedRow]:
    """Yields (where, row) of a parquet, JSON Lines, JSON, CSV, TSV or Arrow file; UserError names file and row.

    `columns`: those that are wanted; a file that is stored by columns is read no further than them.
    """
    reader = _READERS.get(file_type(path))
    if reader is None:
        raise unknown_type(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return reader(path, columns)


def unknown_type(path: Path) -> UserError:
    is_sheet = path.suffix.lower() in (".xlsx", ".xls", ".ods")
    fix = "save the sheet as .csv" if is_sheet else f"give one of {', '.join(FILE_TYPES)}"
    return UserError(f"{path}: unknown file type {path.suffix!r}; {fix}")


def file_type(path: Path) -> str:
    """The suffix that decides how a file is read: `.jsonl` of `pairs.jsonl.gz` too, "" where none is known."""
    suffix = file_suffix(path)
    return suffix if suffix in (_TEXT if path.suffix.lower() in COMPRESSIONS else _READERS) else ""


def _text(
    reader: Callable[[Path], Iterator[LocatedRow]],
) -> Callable[[Path, Container[str] | None], Iterator[LocatedRow]]:
    """A reader of a file that is stored row by row, which has to be read whole whatever is wanted of it."""
    return lambda path, columns: reader(path)


_TEXT = {
    ".jsonl": _text(read_json),
    ".ndjson": _text(read_json),
    ".json": _text(read_json),
    ".csv": _text(read_csv),
    ".tsv": _text(read_tsv),
}
_READERS = {".parquet": read_parquet, **_TEXT, ".arrow": read_arrow}
FILE_TYPES = (*_READERS, *(f".jsonl{suffix}" for suffix in COMPRESSIONS))
