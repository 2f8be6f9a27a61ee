"""Archives of torch.save: where a tensor's elements lie in them, and a writer for one tensor that is already bytes."""

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from checkpoint_convert.tensors.pickle_check import check_pickle
from checkpoint_convert.tensors.pickle_write import Call, Name, dumps
from checkpoint_convert.tensors.pickles import StorageKey, StoredTensor, load_saved, row_major
from checkpoint_convert.tensors.source import read_exactly
from checkpoint_convert.tensors.stored_zip import StoredZip
from dpop_base.checksums import crc32
from dpop_base.errors import UserError, first_line

_LOCAL_HEADER_BYTES = 30
MAX_PICKLE_BYTES = 32 << 20
_CRC_BYTES = 1 << 20


class FileSlice(io.RawIOBase):
    """Bytes `[offset, offset + length)` of an open file as a file of their own."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._position = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        count = os.preadv(self._descriptor, [view], self._offset + self._position) if len(view) else 0
        self._position += count
        return count


class TorchArchive:
    """A torch.save archive in a slice of an open file. Raises UserError where it is not one, or is not just tensors."""

    def __init__(
        self,
        descriptor: int,
        path: Path,
        offset: int = 0,
        length: int | None = None,
        *,
        load: Callable[[bytes], Any] = load_saved,
    ) -> None:
        self.path, self._base = path, offset
        self._descriptor = descriptor
        file_bytes = os.fstat(descriptor).st_size
        self._end = min(file_bytes, offset + length) if length is not None else file_bytes
        try:
            with zipfile.ZipFile(io.BufferedReader(FileSlice(descriptor, offset, self._end - offset))) as archive:
                self._entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
                data = self._small(archive, "data.pkl")
                check_pickle(data)
                self.content = load(data)
                if "byteorder" in self._entries and self._small(archive, "byteorder") != b"little":
                    raise ValueError("it is big-endian")
        except UserError:
            raise
        except pickle.UnpicklingError as error:
            raise UserError(f"{path}: refused, {error}; convert it to safetensors where you trust it") from None
        except Exception as error:  # a broken zip raises nearly anything
            raise UserError(f"{path}: is not a file of torch.save ({first_line(error)}); download it again") from None

    def _small(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """A record that is read whole. torch.save compresses none: a compressed one may be any size once unpacked."""
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its {name} is compressed or too large")
        return archive.read(entry)

    def elements(self, tensor: StoredTensor) -> tuple[int, int]:
        """Byte offset in the file of the storage's first element, and the storage's bytes."""
        entry = self._entries.get(f"data/{tensor.storage.key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self.path}: lacks the elements of a tensor; download it again")
        start = self._base + entry.header_offset
        header = os.pread(self._descriptor, _LOCAL_HEADER_BYTES, start)
        if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
            raise UserError(f"{self.path}: is damaged at byte {start}; download it again")
        names_bytes = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        first = start + _LOCAL_HEADER_BYTES + names_bytes
        if first + entry.file_size > self._end:
            raise UserError(f"{self.path}: ends before the elements of a tensor that it announces; download it again")
        return first, entry.file_size

    def check_elements(self, tensor: StoredTensor, data: memoryview | None = None) -> None:
        """
        Raises UserError where the elements are not those that were written: the archive keeps their CRC-32. `data`:
        the whole storage's bytes, if they were read already.
        """
        start, num_bytes = self.elements(tensor)
        found = crc32(data) if data is not None else 0
        if data is None:
            buffer = memoryview(bytearray(min(num_bytes, _CRC_BYTES)))
            for first in range(0, num_bytes, _CRC_BYTES):
                part = buffer[: min(_CRC_BYTES, num_bytes - first)]
                read_exactly(self._descriptor, self.path, start + first, part)
                found = crc32(part, found)
        if found != self._entries[f"data/{tensor.storage.key}"].CRC:
            raise UserError(
                f"{self.path}: is damaged: the {num_bytes} bytes from byte {start} on are not those that were written; "
                "copy it again, or convert it again"
            )


class _Relative:
    """What zipfile needs of a stream, counted from where the archive begins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._base = stream, stream.tell()

    def write(self, data: Any) -> int:
        return self._stream.write(data)

    def tell(self) -> int:
        return self._stream.tell() - self._base

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset + (self._base if whence == os.SEEK_SET else 0), whence) - self._base

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        self._stream.flush()


def write_tensor_archive(stream: BinaryIO, shape: tuple[int, ...], dtype: str, parts: Iterable[memoryview]) -> int:
    """
    Writes what `torch.save(tensor, stream)` would, from the tensor's bytes as they come. Returns their CRC-32, which
    the archive needs anyway.
    """
    archive = StoredZip(stream)
    archive.add("archive/data.pkl", [dumps(tensor_call(shape, dtype))])
    archive.add("archive/byteorder", [b"little"])
    elements = archive.add("archive/data/0", parts)
    archive.add("archive/version", [b"3\n"])
    archive.finish()
    return elements


def write_object_archive(stream: BinaryIO, value: Any, storages: dict[str, bytes] | None = None) -> None:
    """Writes what `torch.save(value, stream)` would; tensors in `value` are made with `tensor_call`."""
    records = {"data.pkl": dumps(value), "byteorder": b"little"}
    records |= {f"data/{key}": elements for key, elements in (storages or {}).items()}
    with _new_archive(stream) as archive:
        for name, content in (*records.items(), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


def tensor_call(shape: tuple[int, ...], dtype: str, key: str = "0") -> Call:
    """torch.save's description of a contiguous tensor whose elements are the archive's record `data/<key>`."""
    hooks = Call(Name("collections", "OrderedDict"))
    storage = StorageKey(key, dtype, math.prod(shape))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), storage, 0, shape, row_major(shape), False, hooks)


def _new_archive(stream: BinaryIO) -> zipfile.ZipFile:
    return zipfile.ZipFile(cast(BinaryIO, _Relative(stream)), "w", zipfile.ZIP_STORED, allowZip64=True)
