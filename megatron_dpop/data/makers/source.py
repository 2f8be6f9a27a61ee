"""Rows of a source dataset: a local file, a folder that `datasets` saved, or a dataset of the Hugging Face hub."""

from collections.abc import Iterator
from pathlib import Path

from ..files.located_row import LocatedRow
from ..files.rows import Location, find_rows


def source_rows(source: str, *, config: str | None, split: str) -> Iterator[LocatedRow]:
    """Yields (where, row); `config` and `split` only matter where the source is more than one file."""
    path = Path(source).expanduser()
    if path.is_file():
        return find_rows(Location(source)).read()
    if (path / "state.json").is_file():
        return find_rows(Location(source)).read()
    return find_rows(Location(source, split, None if path.is_dir() else config)).read()
