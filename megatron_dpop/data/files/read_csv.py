"""Rows of a table in text: CSV, also with semicolons, and TSV."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dpop_base.errors import UserError, first_line

from .compressed import open_bytes
from .located_row import LocatedRow

_LONGEST_CELL = 2**31 - 1


def read_csv(path: Path) -> Iterator[LocatedRow]:
    return _read(path, None)


def read_tsv(path: Path) -> Iterator[LocatedRow]:
    return _read(path, "\t")


def _read(path: Path, delimiter: str | None) -> Iterator[LocatedRow]:
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield from _rows(text, path, delimiter)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: broken CSV ({first_line(error)})") from None


def _rows(file: TextIO, path: Path, delimiter: str | None) -> Iterator[LocatedRow]:
    header_line = file.readline()
    used = delimiter or (";" if header_line.count(";") > header_line.count(",") else ",")
    header = next(csv.reader(_lines(header_line, file), delimiter=used, skipinitialspace=True), [])
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice!r}; give each a name of its own")
    for number, cells in enumerate(filter(None, csv.reader(file, delimiter=used)), 1):
        if len(cells) != len(names):
            name = {",": "commas", ";": "semicolons", "\t": "tabs"}[used]
            raise UserError(
                f"{path}, row {number}: has {len(cells)} fields, the header has {len(names)}, by {name}; "
                "put a field that holds the separator into double quotes"
            )
        yield f"row {number}", dict(zip(names, cells, strict=True))


def _lines(first: str, rest: TextIO) -> Iterator[str]:
    """The header's lines: a quoted name may hold a line break."""
    yield first
    yield from iter(rest.readline, "")
