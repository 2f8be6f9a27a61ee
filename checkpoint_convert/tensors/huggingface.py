"""
A Hugging Face folder as a source, with the files that transformers would load: safetensors before `.bin`, a single file
before shards, and of an index the shards that it names and all that they hold.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from checkpoint_convert.manifest import check_small_files, stretches_of
from checkpoint_convert.tensors.archive import TorchArchive
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.legacy_archive import LegacyArchive, is_legacy
from checkpoint_convert.tensors.pickles import StoredTensor
from checkpoint_convert.tensors.safetensors_file import SafetensorsFile
from checkpoint_convert.tensors.source import TensorInfo, open_to_read, read_exactly
from dpop_base.errors import UserError, printable
from dpop_base.files import is_file_name

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class _File(Protocol):
    path: Path
    tensors: dict[str, TensorInfo]

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None: ...

    def read_bytes(self, name: str, start: int, out: memoryview) -> None: ...

    def checks(self) -> list[Callable[[], None]]: ...

    def close(self) -> None: ...


class BinFile:
    """A `pytorch_model.bin`: read by row ranges where it lies, its pickle restricted to tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_to_read(path)
        try:
            legacy = is_legacy(self._descriptor)
            archive = LegacyArchive(self._descriptor, path) if legacy else TorchArchive(self._descriptor, path)
            if not isinstance(archive.content, dict):
                raise UserError(f"{path}: does not hold a table of tensors; download it again")
            self._offsets: dict[str, int] = {}
            self.tensors = {name: self._place(archive, name, t) for name, t in archive.content.items()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def checks(self) -> list[Callable[[], None]]:
        return []

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        self.read_bytes(name, first * self.tensors[name].row_bytes, out)

    def read_bytes(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` with a tensor's bytes from its byte `start` on."""
        read_exactly(self._descriptor, self.path, self._offsets[name] + start, out)

    def _place(self, archive: TorchArchive | LegacyArchive, name: Any, tensor: Any) -> TensorInfo:
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor) or not tensor.contiguous:
            what = printable(name) if isinstance(name, str) else type(name).__name__
            raise UserError(f"{self.path}: {what} is not a contiguous tensor; save the model again")
        info = TensorInfo(tensor.shape, tensor.storage.dtype)
        width = ITEM_BYTES.get(info.dtype)
        if width is None:  # a mask or a counter: refused only if the architecture wants it
            return info
        start, storage_bytes = archive.elements(tensor)
        if tensor.offset_elements < 0 or tensor.offset_elements * width + info.num_bytes > storage_bytes:
            raise UserError(f"{self.path}: {name!r} is larger than its bytes; download it again")
        self._offsets[name] = start + tensor.offset_elements * width
        return info


class HuggingFaceSource:
    """
    All tensors of a folder. Raises UserError for a missing, truncated or contradictory shard; in a folder that a
    conversion wrote, also for one that has changed since.
    """

    def __init__(self, folder: Path, names: tuple[str, ...] = WEIGHTS) -> None:
        check_small_files(folder)
        self._stretches = stretches_of(folder)
        self._files: list[_File] = []
        self._home: dict[str, tuple[_File, str]] = {}  # the file, and the tensor's name in it
        self._first_row: dict[str, int] = {}  # of the parts of tensors that were split, in rows of their own length
        self.tensors: dict[str, TensorInfo] = {}
        try:
            for name in _weight_files(folder, names):
                self._add(folder / name)
        except BaseException:
            self.close()
            raise

    def _add(self, path: Path) -> None:
        is_safe = path.suffix == ".safetensors"
        file: _File = SafetensorsFile(path, self._stretches.get(path.name, ())) if is_safe else BinFile(path)
        self._files.append(file)
        for name, info in file.tensors.items():
            if name in self._home and not _equal(self._home[name][0], file, name):
                other = self._home[name][0].path.name
                raise UserError(f"{path}: tensor {printable(name)} is another one in {other}; remove one of them")
            self._home[name] = (file, name)
            self.tensors[name] = info

    def rename(self, name: str, new: str) -> None:
        """Gives a tensor the name under which the model's table lists it."""
        self._home[new] = self._home.pop(name)
        self.tensors[new] = self.tensors.pop(name)

    def split(self, name: str, parts: dict[str, int], columns: int) -> None:
        """Puts matrices, named and of so many rows in `parts`, in the place of the tensor that holds them in a row."""
        info, first = self.tensors.pop(name), 0
        for part, rows in parts.items():
            self.tensors[part] = TensorInfo((rows, columns), info.dtype)
            self._home[part] = self._home[name]
            self._first_row[part] = first
            first += rows

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        file, stored = self._home[name]
        if name in self._first_row:
            file.read_bytes(stored, (self._first_row[name] + first) * self.tensors[name].row_bytes, out)
        else:
            file.read_rows(stored, first, rows, out)

    def check_elements(self) -> None:
        """Raises UserError for any byte that has a checksum and is not as it was written. Reads all of them."""
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda check: check(), (c for file in self._files for c in file.checks())))

    def files(self) -> list[Path]:
        return [file.path for file in self._files]

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []


def _equal(a: _File, b: _File, name: str) -> bool:
    """True where a tensor that is in two files has the same bits in both."""
    info = a.tensors[name]
    if info != b.tensors[name] or info.dtype not in ITEM_BYTES:
        return info == b.tensors[name]
    one, two = bytearray(info.row_bytes), bytearray(info.row_bytes)
    for row in range(info.shape[0] if info.shape else 0):
        a.read_rows(name, row, 1, memoryview(one))
        b.read_rows(name, row, 1, memoryview(two))
        if one != two:
            return False
    return True


def _weight_files(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Names of the files with weights."""
    for single in names:
        if (folder / single).is_file():
            return [single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            return sorted(set(_read_index(index).values()))
    for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        if list(folder.glob(pattern)):
            raise UserError(f"{folder}: has weight shards but no index.json that lists them; download it")
    raise UserError(f"{folder}: has no weights ({' or '.join(names)}, or shards with an index); download them")


def _read_index(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        good = isinstance(table, dict) and table and all(isinstance(v, str) for v in table.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good or not all(is_file_name(name) for name in table.values()):
        raise UserError(f"{path}: holds no table 'weight_map' of tensors and files; download it again")
    return dict(table)
