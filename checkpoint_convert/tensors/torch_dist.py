"""A Megatron `torch_dist` folder as a source of tensors, layer by layer, in whatever layout it was saved."""

import itertools
import math
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from checkpoint_convert.manifest import check_small_files
from checkpoint_convert.tensors.archive import TorchArchive
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.pickles import Chunk, Index, Metadata, StoredTensor, TensorEntry, load_dcp_metadata
from checkpoint_convert.tensors.source import TensorInfo, read_exactly
from checkpoint_convert.tensors.stacked import stacked_axes, tensors_of
from dpop_base.errors import UserError, printable
from dpop_base.files import is_file_name

OPTIMIZER = "optimizer."
MOST_STACKED = 1_000_000  # tensors of one key, layers times experts: no model has a tenth
# What wrappers of the model put before its names: NeMo 2 (Lightning) and Megatron-Bridge.
PREFIX = re.compile(r"((?:(?:model|module)\.)+)(?:embedding|decoder|output_layer)\.")


@dataclass(frozen=True)
class _Chunk:
    """A block of a stored tensor: where it starts, its sizes, and the slice of a file that holds its archive."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


# Of a chunk: rows before the tensor's; of the tensor: first row, rows, first column, columns.
_Block = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class _Stored:
    """Where a named tensor lies: the key on disk, and its layer and expert where the key stacks them."""

    key: str
    place: tuple[int, ...]


class TorchDistSource:
    """
    The model's tensors; optimizer state (keys beginning `optimizer.`) and objects that are not tensors are left
    out. Raises UserError for a missing or damaged file, and for a pickle that names anything but metadata.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_small_files(folder)
        self._metadata = read_metadata(folder / ".metadata")
        self.tensors: dict[str, TensorInfo] = {}
        self._stored: dict[str, _Stored] = {}
        self._chunks: dict[str, list[_Chunk]] = {}
        self._blocks_of: dict[str, dict[tuple[int, ...], list[tuple[_Chunk, _Block]]]] = {}  # by key and place
        self._elements: dict[_Chunk, int] = {}  # byte offset of a chunk's first element
        self._descriptors: dict[str, int] = {}
        self._lock = Lock()
        self._chunk_locks: defaultdict[_Chunk, Lock] = defaultdict(Lock)
        self.prefix = _wrapper_prefix(folder, self._metadata)
        for key, entry in self._metadata.state_dict_metadata.items():
            if isinstance(entry, TensorEntry) and not key.startswith(OPTIMIZER):
                self._add(key, entry)

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        shape = self.tensors[name].shape
        self.read_block(name, first, rows, 0, math.prod(shape[1:]), out)

    def read_block(self, name: str, first: int, rows: int, first_column: int, columns: int, out: memoryview) -> None:
        """Fills `out` with rows `[first, first + rows)` and columns `[first_column, first_column + columns)`."""
        stored, width = self._stored[name], ITEM_BYTES[self.tensors[name].dtype]
        row_out, filled = columns * width, 0
        for chunk, block in self._blocks(stored):
            skip_rows, row0, chunk_rows, column0, chunk_columns = block
            low, high = max(first, row0), min(first + rows, row0 + chunk_rows)
            left, right = max(first_column, column0), min(first_column + columns, column0 + chunk_columns)
            if low >= high or left >= right:
                continue
            row_bytes = chunk_columns * width
            offset = self._first_element(chunk, name) + (skip_rows + low - row0) * row_bytes
            rows_out = out[(low - first) * row_out : (high - first) * row_out]
            if row_out == row_bytes:
                self._read(chunk, offset, rows_out)
            else:
                whole = memoryview(bytearray((high - low) * row_bytes))
                self._read(chunk, offset, whole)
                taken = slice((left - column0) * width, (right - column0) * width)
                _copy_columns(whole, row_bytes, taken, rows_out, row_out, (left - first_column) * width)
            filled += (high - low) * (right - left) * width
        if filled != len(out):
            raise UserError(f"{self.folder}: the chunks of {stored.key!r} do not make up the tensor; copy it again")

    def _blocks(self, stored: _Stored) -> list[tuple[_Chunk, _Block]]:
        """The chunks that hold parts of a tensor, and of each which: looked for once among all of its key's."""
        found = self._blocks_of.get(stored.key)
        if found is None:
            found = {}
            for chunk in self._chunks[stored.key]:
                for place, block in _blocks_of_chunk(chunk, len(stored.place)):
                    found.setdefault(place, []).append((chunk, block))
            self._blocks_of[stored.key] = found
        return found.get(stored.place, [])

    def find_object(self, key: str) -> tuple[str, int, int] | None:
        """File, offset and length in bytes of an object that is stored among the tensors, or None."""
        place = self._metadata.storage_data.get(Index(key))
        if place is None or Path(place.relative_path).name != place.relative_path:
            return None
        return place.relative_path, place.offset, place.length

    def files(self) -> list[Path]:
        names = {chunk.file for chunks in self._chunks.values() for chunk in chunks}
        return [self.folder / ".metadata", *(self.folder / name for name in sorted(names))]

    def check_files(self) -> None:
        """Raises UserError for a file that is missing, or shorter than what the metadata says it holds."""
        ends: dict[str, int] = {}
        for chunks in self._chunks.values():
            for chunk in chunks:
                ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
        for file, end in sorted(ends.items()):
            file_bytes = os.fstat(self._open(file)).st_size
            if file_bytes < end:
                path = self.folder / file
                raise UserError(f"{path}: is {file_bytes} bytes long and should be {end}; copy the checkpoint again")

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def _add(self, key: str, entry: TensorEntry) -> None:
        dtype, size = entry.properties.dtype, entry.size
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(size):
            raise UserError(f"{self.folder}: the parts of {printable(key)} do not make up the tensor; copy it again")
        self._chunks[key] = [self._locate(key, chunk) for chunk in entry.chunks]
        name = key.removeprefix(self.prefix)
        axes = stacked_axes(name)
        if len(size) < axes or math.prod(size[:axes]) > MOST_STACKED:
            raise UserError(f"{self.folder}: {printable(key)} is of shape {list(size)}, not that of stacked layers")
        for tensor, place in tensors_of(name, size[:axes]):
            self._name(tensor, _Stored(key, place), TensorInfo(size[axes:], dtype))

    def _name(self, name: str, stored: _Stored, info: TensorInfo) -> None:
        if name in self.tensors:
            raise UserError(f"{self.folder}: holds {name!r} twice, stacked and by layer; save the checkpoint again")
        self.tensors[name] = info
        self._stored[name] = stored

    def _locate(self, key: str, chunk: Chunk) -> _Chunk:
        info = self._metadata.storage_data.get(Index(key, chunk.offsets))
        if info is None or not is_file_name(info.relative_path) or info.transform_descriptors:
            raise UserError(
                f"{self.folder}: does not say plainly where {printable(key)} is stored; save the checkpoint again"
            )
        return _Chunk(chunk.offsets, chunk.sizes, info.relative_path, info.offset, info.length)

    def _first_element(self, chunk: _Chunk, name: str) -> int:
        """Where in its file a chunk's elements begin, which are checked to be those that were written, once."""
        with self._lock:
            lock = self._chunk_locks[chunk]
        with lock:
            return self._find_first_element(chunk, name)

    def _find_first_element(self, chunk: _Chunk, name: str) -> int:
        found = self._elements.get(chunk)
        if found is None:
            path = self.folder / chunk.file
            archive = TorchArchive(self._open(chunk.file), path, chunk.start, chunk.length)
            tensor = archive.content
            if not isinstance(tensor, StoredTensor) or tensor.shape != chunk.sizes or not tensor.contiguous:
                raise UserError(f"{path}: the chunk of {name!r} at byte {chunk.start} has another shape; copy it again")
            start, storage_bytes = archive.elements(tensor)
            width = ITEM_BYTES[self.tensors[name].dtype]
            needed = (tensor.offset_elements + math.prod(chunk.sizes)) * width
            if tensor.storage.dtype != self.tensors[name].dtype or needed > storage_bytes:
                raise UserError(f"{path}: the chunk of {name!r} at byte {chunk.start} is damaged; copy it again")
            archive.check_elements(tensor)
            found = self._elements[chunk] = start + tensor.offset_elements * width
        return found

    def _read(self, chunk: _Chunk, offset: int, out: memoryview) -> None:
        read_exactly(self._open(chunk.file), self.folder / chunk.file, offset, out)

    def _open(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = os.open(self.folder / file, os.O_RDONLY | os.O_NONBLOCK)
                except OSError as error:
                    message = f"{self.folder / file}: cannot be opened ({error.strerror}); copy the checkpoint again"
                    raise UserError(message) from None
            return self._descriptors[file]


def _wrapper_prefix(folder: Path, metadata: Metadata) -> str:
    found = {match[1] for key in metadata.state_dict_metadata if (match := PREFIX.match(key))}
    if len(found) > 1:
        raise UserError(f"{folder}: holds several models ({', '.join(sorted(found))}); save one of them by itself")
    return next(iter(found), "")


def _copy_columns(
    source: memoryview, source_row: int, taken: slice, target: memoryview, target_row: int, start: int
) -> None:
    """Bytes `taken` of each row of `source` to byte `start` on of each row of `target`."""
    import numpy as np  # only for checkpoints that cut columns: importing it takes longer than reading a small model

    rows = np.frombuffer(source, np.uint8).reshape(-1, source_row)[:, taken]
    np.frombuffer(target, np.uint8).reshape(-1, target_row)[:, start : start + rows.shape[1]] = rows


def _blocks_of_chunk(chunk: _Chunk, axes: int) -> Iterator[tuple[tuple[int, ...], _Block]]:
    """The stacked tensors that a chunk holds a block of, by their places; `axes`: of the stack."""
    ranges = [range(offset, offset + size) for offset, size in zip(chunk.offsets[:axes], chunk.sizes, strict=False)]
    offsets, sizes = chunk.offsets[axes:], chunk.sizes[axes:]
    column0, columns = (offsets[1], sizes[1]) if len(sizes) > 1 else (0, 1)
    for number, place in enumerate(itertools.product(*ranges)):
        yield place, (number * sizes[0], offsets[0], sizes[0], column0, columns)


def read_metadata(path: Path) -> Metadata:
    try:
        return load_dcp_metadata(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: is missing, so this is no complete torch_dist checkpoint; copy it again") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, {error}; take the checkpoint from a source you trust") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
