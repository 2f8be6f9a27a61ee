"""Rows of a data file, one at a time, each with the words that say where it stands."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from checkpoint_convert.errors import UserError, first_line

Row = tuple[str, dict[str, Any]]  # ("row 3" or "line 3", counted from 1; columns)
BATCH_ROWS = 1024


def read_rows(path: Path) -> Iterator[Row]:
    """Yields (where, row) of a parquet, JSON Lines, JSON, CSV or Arrow file; UserError names file and row."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise UserError(f"{path}: unknown file type {path.suffix!r}; give one of {known}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    empty = True
    for row in reader(path):
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: holds no rows")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield from _batches(file.iter_batches(BATCH_ROWS), path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole parquet file ({first_line(error)}); write it again") from None


def _arrow(path: Path) -> Iterator[Row]:
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _batches(batches, path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole Arrow file ({first_line(error)}); write it again") from None


def _batches(batches: Iterator[pyarrow.RecordBatch], path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        _check_text(batch, number, path)
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _check_text(batch: pyarrow.RecordBatch, rows_before: int, path: Path) -> None:
    """Arrow does not look into a batch when it reads it: damage shows, or crashes, when values are asked for."""
    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        found = _NO_UTF8.fullmatch(str(error))
        if found is None:
            raise
        first = rows_before + 1
        # Of a string within a list or object, Arrow tells no row.
        where = f"rows {first} to {rows_before + batch.num_rows}" if found["within"] else f"row {first + int(found[3])}"
        column = batch.schema.names[int(found[1])]
        raise UserError(f"{path}, {where}: `{column}` is not UTF-8 text; write the file again") from None


_NO_UTF8 = re.compile(r"In column (\d+): Invalid: (?P<within>.*: )?Invalid UTF8 sequence at string index (\d+)")


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _object(_parse(line, path, f"line {number}"), path, f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    """A JSON array of objects; a file of JSON lines under this name is read as such."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        first = path.open("rb").readline()
        if _is_json(first):
            yield from _json_lines(path)
            return
    value = _parse(path.read_bytes(), path, "the whole file")
    if not isinstance(value, list):
        raise UserError(f"{path}: holds one JSON {type(value).__name__}; a list of objects is needed")
    for number, row in enumerate(value, 1):
        yield f"row {number}", _object(row, path, f"row {number}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(data: bytes, path: Path, where: str) -> Any:
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, {where}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}" if where == "the whole file" else where
        raise UserError(f"{path}, {place}: broken JSON ({error.msg}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, {where}: JSON that cannot be read ({first_line(error)})") from None


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where}: a JSON object is needed, not {type(value).__name__}")
    return value


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(file, path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: broken CSV ({first_line(error)})") from None


def _csv_rows(file: TextIO, path: Path) -> Iterator[Row]:
    reader = csv.DictReader(file)
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: has another number of fields than the header")
        yield f"row {number}", row


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".arrow": _arrow,
}
FILE_TYPES = frozenset(_READERS)
