"""Where a source's rows come from: a file, files that a pattern names, a folder, or a dataset of the hub."""

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dpop_base.errors import UserError, first_line

from .compressed import COMPRESSIONS
from .located_row import LocatedRow
from .parquet_footer import ParquetFooter, parquet_footers
from .read_arrow import BATCH_ROWS, batch_rows, filled_in_arrow
from .read_rows import FILE_TYPES, file_type, read_rows, unknown_type

if TYPE_CHECKING:
    import datasets

_SAMPLE_ROWS = 64  # that the format is recognised from
_BULKY_BYTES = 4096  # a value, on average
_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "state.json")  # the library's own, which hold no rows
_NOT_READ = b""  # of a value that is there
_PATTERN = re.compile(r"[*?\[]")
MOST_ENTRIES = 10_000  # of a folder: `datasets` looks through all of them once for each name that a split may have


@dataclass(frozen=True)
class Location:
    """What a config says of where rows are."""

    path: str  # of a file or folder, a pattern (`shards/*.parquet`), or a dataset's name on the hub
    split: str | None = None  # of a folder or hub dataset; a name, or a slice as `datasets` has it (`train[:10%]`)
    subset: str | None = None  # of a folder or hub dataset that has several configurations
    revision: str | None = None  # of a hub dataset: branch, tag or commit

    def __str__(self) -> str:
        return self.path if self.split is None else f"{self.path} ({self.split})"

    @property
    def stem(self) -> str:
        """A short name: the file's or folder's, as far as a pattern leaves nothing open."""
        path = Path(self.path)
        name = path
        while file_type(name) or name.suffix.lower() in COMPRESSIONS:
            name = Path(name.stem)
        fixed = _PATTERN.split(name.name)[0].strip("-_. ")
        return fixed or path.parent.name or "data"


class Rows(Protocol):
    """Rows that can be read as often as asked, in the same order."""

    @property
    def unused_files(self) -> tuple[str, ...]:
        """Data files that lie beside those that are read and belong to no split."""

    def read(self, columns: Container[str] | None = None) -> Iterator[LocatedRow]:
        """(where, row) of each; of files that are stored by columns, only those asked for."""

    def filled_beside(self, columns: Container[str]) -> Counter[str]:
        """Counts, by column that `read` passes over when asked for `columns`, the rows in which it is filled."""

    def bulky_columns(self) -> list[str]:
        """Columns that are too large for a look at the first rows."""

    def digest(self) -> str:
        """Changes with any byte that the rows come from."""


def find_rows(location: Location) -> Rows:
    """UserError where there is nothing by that name, or more than one thing."""
    path = Path(location.path).expanduser()
    if path.is_dir():
        return _Folder(path, location).rows()
    if path.is_file():
        return _only_files([path], location)
    if found := _matching(path):
        return _only_files(found, location)
    if _PATTERN.search(location.path):
        raise UserError(f"{location.path}: no file matches this pattern")
    if file_type(path) or _is_no_hub_name(location.path):
        raise UserError(f"{location.path}: no such file")
    return _hub_rows(location)


def is_here(location: Location) -> bool:
    """Whether the rows are on this machine, or at least files that say they are."""
    path = Path(location.path).expanduser()
    return path.exists() or bool(_matching(path))


def _matching(pattern: Path) -> list[Path]:
    """The files that a pattern names, in the order of their names."""
    if not _PATTERN.search(str(pattern)):
        return []
    return sorted(path for name in glob.glob(str(pattern), recursive=True) if (path := Path(name)).is_file())


def sample(rows: Rows) -> list[LocatedRow]:
    """The first rows; of columns that are too large to look into, only that they are there."""
    bulky = rows.bulky_columns()
    if not bulky:
        return list(islice(rows.read(), _SAMPLE_ROWS))
    found = islice(rows.read(_AllBut(bulky)), _SAMPLE_ROWS)
    return [(where, {**row, **dict.fromkeys(bulky, _NOT_READ)}) for where, row in found]


@dataclass(frozen=True)
class _AllBut:
    """All names but these."""

    names: Container[str]

    def __contains__(self, name: object) -> bool:
        return name not in self.names


def _only_files(paths: list[Path], location: Location) -> "FileRows":
    for key in ("split", "subset", "revision"):
        if getattr(location, key) is not None:
            raise UserError(
                f"{location.path}: `{key}` belongs to folders and hub datasets, and this is "
                f"{'a file' if len(paths) == 1 else 'a list of files'}; leave it out"
            )
    return FileRows(tuple(paths), location.path)


def _is_no_hub_name(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name)


@dataclass(frozen=True)
class FileRows:
    """Rows of files, one after the other."""

    paths: tuple[Path, ...]
    name: str
    unused_files: tuple[str, ...] = ()

    def read(self, columns: Container[str] | None = None) -> Iterator[LocatedRow]:
        empty = True
        for path in self.paths:
            prefix = f"{path.name}, " if len(self.paths) > 1 else ""
            for where, row in read_rows(path, columns):
                empty = False
                yield prefix + where, row
        if empty:
            raise UserError(f"{self.name}: holds no rows")

    def filled_beside(self, columns: Container[str]) -> Counter[str]:
        filled: Counter[str] = Counter()
        for footer in self._footers.values():
            filled.update({name: rows for name, rows in footer.filled_rows.items() if name not in columns})
        for path in self.paths:
            if file_type(path) == ".arrow":
                filled.update(filled_in_arrow(path, columns))
        return +filled

    def bulky_columns(self) -> list[str]:
        """Columns that hold large bytes, such as pictures: even a few of their rows are a large page of the file."""
        footer = self._footers.get(self.paths[0])
        if footer is None:
            return []
        return [name for name in footer.binary if footer.size_bytes[name] > _BULKY_BYTES * footer.rows]

    @cached_property
    def _footers(self) -> dict[Path, ParquetFooter]:
        paths = [path for path in self.paths if file_type(path) == ".parquet" and path.is_file()]
        return dict(zip(paths, parquet_footers(paths), strict=True)) if paths else {}

    def digest(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"{path}: no such file")
            with path.open("rb") as file:
                digest.update(f"{file_type(path)}\0{path.suffix}\0".encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a dataset that `datasets` holds as a table."""

    dataset: "datasets.Dataset"
    name: str
    unused_files: tuple[str, ...] = ()

    def read(self, columns: Container[str] | None = None) -> Iterator[LocatedRow]:
        if not len(self.dataset):
            raise UserError(f"{self.name}: holds no rows")
        names = [name for name in self.dataset.column_names if columns is None or name in columns]
        tables = self.dataset.select_columns(names).with_format("arrow").iter(BATCH_ROWS)
        yield from batch_rows((batch for table in tables for batch in table.combine_chunks().to_batches()), self.name)

    def filled_beside(self, columns: Container[str]) -> Counter[str]:
        table = self.dataset.data
        filled = {
            name: len(table) - table.column(name).null_count for name in table.column_names if name not in columns
        }
        return Counter({name: count for name, count in filled.items() if count})

    def bulky_columns(self) -> list[str]:
        return []

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(b"datasets\0")
        for where, row in self.read():
            digest.update(f"{where}\0{row!r}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _rows_of(dataset: "datasets.Dataset", name: str) -> Rows:
    """Its files where they are what the dataset is: they are read in pieces, and their bytes tell a change."""
    import pyarrow

    paths = tuple(Path(entry["filename"]) for entry in dataset.cache_files)
    if paths and dataset._indices is None:
        stored = 0
        for path in paths:
            with pyarrow.memory_map(str(path)) as source:
                stored += sum(batch.num_rows for batch in pyarrow.ipc.open_stream(source))
        if stored == len(dataset):
            return FileRows(paths, name)
    return DatasetRows(dataset, name)


@dataclass(frozen=True)
class _Folder:
    """A folder that `datasets` saved, or one of data files as a hub dataset's repository has them."""

    path: Path
    location: Location

    def rows(self) -> Rows:
        if self.location.revision is not None:
            raise UserError(f"{self.path}: `revision` belongs to hub datasets, and this is a folder; leave it out")
        if (self.path / "dataset_dict.json").is_file() or (self.path / "state.json").is_file():
            return self._saved()
        return self._data_files()

    def _saved(self) -> Rows:
        import datasets

        if self.location.subset is not None:
            raise UserError(f"{self.path}: `subset` belongs to datasets with configurations; leave it out")
        try:
            found = datasets.load_from_disk(str(self.path))
        except Exception as error:  # the library raises a dozen unrelated types for a damaged folder
            raise UserError(f"{self.path}: no whole saved dataset ({first_line(error)}); save it again") from None
        if isinstance(found, datasets.DatasetDict):
            found = found[_choose_split(self.location, list(map(str, found)))]
        elif self.location.split is not None:
            raise UserError(f"{self.path}: holds one dataset without splits; leave `split` out")
        return _rows_of(found, str(self.location))

    def _data_files(self) -> Rows:
        """Which files belong to which split is what `datasets` says, by their names or the folder's README."""
        import datasets

        entries = list(islice(self.path.rglob("*"), MOST_ENTRIES + 1))
        if len(entries) > MOST_ENTRIES:
            raise UserError(
                f"{self.path}: holds more than {MOST_ENTRIES:,} files and folders; name the data's own folder, "
                "or a pattern (folder/*.parquet)"
            )
        if not any(map(file_type, entries)):
            raise UserError(f"{self.path}: holds no data file ({', '.join(FILE_TYPES)})")
        try:
            builder = datasets.load_dataset_builder(str(self.path.resolve()), self.location.subset)
        except Exception as error:  # as above
            raise UserError(f"{self.path}: no dataset can be read from it ({first_line(error)})") from None
        files: dict[Any, list[str]] = builder.config.data_files or {}
        split = _choose_split(self.location, list(map(str, files)))
        paths = tuple(Path(name) for name in files[split])
        used = {Path(name).resolve() for names in files.values() for name in names}
        # `datasets` reads files of one type, that of most of them.
        beside = (entry for entry in entries if file_type(entry) and entry.name not in _OF_DATASETS and entry.is_file())
        left = [entry.relative_to(self.path) for entry in beside if entry.resolve() not in used]
        unused = sorted(str(entry) for entry in left if not any(part.startswith(".") for part in entry.parts))
        for path in paths:
            if not file_type(path):
                raise unknown_type(path)
        return FileRows(paths, str(self.location), tuple(unused))


def _choose_split(location: Location, splits: list[str]) -> str:
    if location.split is None and len(splits) == 1:
        return splits[0]
    if location.split in splits:
        return location.split
    names = ", ".join(splits)
    if location.split is None:
        raise UserError(f"{location.path}: holds the splits {names}; say which with `split`")
    raise UserError(f"{location.path}: has no split {location.split!r}; it has {names}")


def _hub_rows(location: Location) -> Rows:
    import datasets

    split = location.split
    try:
        # No code of a repository is run: `datasets` has no such loader since its version 4.
        if split is None:
            found = datasets.load_dataset(location.path, location.subset, revision=location.revision)
            split = _choose_split(location, list(map(str, found)))
            return _rows_of(found[split], f"{location.path} ({split})")
        chosen = datasets.load_dataset(location.path, location.subset, split=split, revision=location.revision)
    except UserError:
        raise
    except Exception as error:  # network, hub and parsing errors share no base class
        raise UserError(
            f"{location.path}: neither a local file nor a dataset that the hub gives ({first_line(error)}); "
            "download its files and name one"
        ) from None
    return _rows_of(chosen, str(location))
