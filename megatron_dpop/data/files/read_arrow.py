"""Rows of files that are stored by columns: parquet and Arrow. Columns that nobody wants are not read."""

import mmap
import re
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dpop_base.errors import UserError, first_line

from .located_row import LocatedRow
from .parquet_footer import not_whole

BATCH_ROWS = 1024
_PAGE_BUFFER_BYTES = 1 << 20  # pages are read one after the other, not a column of a row group at once


def read_parquet(path: Path, columns: Container[str] | None) -> Iterator[LocatedRow]:
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PAGE_BUFFER_BYTES) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            yield from batch_rows(file.iter_batches(BATCH_ROWS, columns=names, use_threads=False), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise not_whole(path, first_line(error)) from None


def read_arrow(path: Path, columns: Container[str] | None) -> Iterator[LocatedRow]:
    try:
        yield from batch_rows(_arrow_batches(path, columns), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: not a whole Arrow file ({first_line(error)}); write it again") from None


def _arrow_batches(path: Path, columns: Container[str] | None) -> Iterator[pyarrow.RecordBatch]:
    """Batches of a mapped file; the pages of one are given back before the next, so that memory stays flat."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed once no batch refers to it
    source = pyarrow.BufferReader(pyarrow.py_buffer(mapped))
    batches: Iterator[pyarrow.RecordBatch]
    try:
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    except pyarrow.ArrowInvalid:
        source.seek(0)
        batches = iter(pyarrow.ipc.open_stream(source))
    for batch in batches:
        wanted = [name for name in batch.schema.names if columns is None or name in columns]
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.select(wanted).slice(start, BATCH_ROWS)
        mapped.madvise(mmap.MADV_DONTNEED)


def filled_in_arrow(path: Path, columns: Container[str]) -> Counter[str]:
    """column -> rows in which it is not null, of those that are not among `columns`."""
    filled: Counter[str] = Counter()
    for batch in _arrow_batches(path, None):
        for name in batch.schema.names:
            if name not in columns:
                filled[name] += batch.num_rows - batch.column(name).null_count
    return +filled


def batch_rows(batches: Iterator[pyarrow.RecordBatch], name: str) -> Iterator[LocatedRow]:
    number = 0
    for batch in batches:
        _check_text(batch, number, name)
        for row in _plain(batch):
            number += 1
            yield f"row {number}", row


def _plain(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """The batch's rows as JSON would have them.

    Arrow gives every object all the keys that any object of the column has; those that are null were not there.
    """
    rows: list[dict[str, Any]] = batch.to_pylist()
    for field in batch.schema:
        if pyarrow.types.is_nested(field.type):
            for row in rows:
                row[field.name] = _without_nulls(row[field.name])
        elif pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            for row in rows:
                row[field.name] = _text_of_bytes(row[field.name])
    return rows


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value


def _text_of_bytes(value: Any) -> Any:
    """Some writers store text as bytes; bytes that are no text stay what they are."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _check_text(batch: pyarrow.RecordBatch, rows_before: int, name: str) -> None:
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
        raise UserError(f"{name}, {where}: `{column}` is not UTF-8 text; write the file again") from None


_NO_UTF8 = re.compile(r"In column (\d+): Invalid: (?P<within>.*: )?Invalid UTF8 sequence at string index (\d+)")
