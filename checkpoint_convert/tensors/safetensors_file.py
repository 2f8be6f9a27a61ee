"""Safetensors files: the header, read with every claim checked, and written for tensors that are not made yet."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from checkpoint_convert.manifest import CheckedBytes, Stretch
from checkpoint_convert.tensors.dtypes import FROM_SAFETENSORS, ITEM_BYTES, OTHER_ITEM_BYTES, SAFETENSORS
from checkpoint_convert.tensors.source import TensorInfo, open_to_read, read_exactly
from dpop_base.errors import UserError, first_line, printable

MOST_DIMENSIONS = 64
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class SafetensorsFile:
    """
    One file, open for reading. Raises UserError where the header does not describe exactly the bytes there are, or
    where bytes that have a checksum are not those that were written.
    """

    def __init__(self, path: Path, stretches: Iterable[Stretch] = ()) -> None:
        self.path = path
        self._descriptor = open_to_read(path)
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._checked = CheckedBytes(self._descriptor, path, stretches)
        try:
            self._checked.check(0, 1)
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def checks(self) -> list[Callable[[], None]]:
        """One for each stretch that has a checksum, to be called from any thread."""
        return self._checked.checks()

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        self.read_bytes(name, first * self.tensors[name].row_bytes, out)

    def read_bytes(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` with a tensor's bytes from its byte `start` on."""
        offset = self._offsets[name] + start
        self._checked.check(offset, len(out))
        read_exactly(self._descriptor, self.path, offset, out)

    def _read_header(self) -> None:
        file_bytes = os.fstat(self._descriptor).st_size
        if file_bytes < 8:
            raise self._broken("is shorter than any safetensors file")
        prefix = bytearray(8)
        read_exactly(self._descriptor, self.path, 0, memoryview(prefix))
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise self._broken(f"announces a header of {header_bytes} bytes in a file of {file_bytes}")
        raw = bytearray(header_bytes)
        read_exactly(self._descriptor, self.path, 8, memoryview(raw))
        try:
            header = json.loads(raw, object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"has an unreadable header ({first_line(error)})") from None
        if not isinstance(header, dict):
            raise self._broken("has a header that is not a table")
        header.pop("__metadata__", None)
        ends = {name: self._check_entry(name, entry) for name, entry in header.items()}
        position = 0
        for name, (start, end) in sorted(ends.items(), key=lambda item: item[1]):
            if start != position:
                raise self._broken(f"has a gap or an overlap before tensor {printable(name)}")
            position = end
            self._offsets[name] = 8 + header_bytes + start
        if 8 + header_bytes + position != file_bytes:
            raise self._broken(f"should be {8 + header_bytes + position} bytes long and is {file_bytes}")

    def _check_entry(self, name: str, entry: Any) -> tuple[int, int]:
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            good = type(dtype) is str and type(shape) is list and len(shape) <= MOST_DIMENSIONS
            good = good and all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end))
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise self._broken(f"describes tensor {printable(name)} wrongly")
        width = ITEM_BYTES.get(FROM_SAFETENSORS.get(dtype, ""), OTHER_ITEM_BYTES.get(dtype, 0))
        if not width or end - start != math.prod(shape) * width:
            raise self._broken(f"gives tensor {printable(name)} a dtype and shape that do not fit its bytes")
        info = TensorInfo(tuple(shape), FROM_SAFETENSORS.get(dtype, dtype))
        self.tensors[name] = info
        return start, end

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; download it again")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("the same name twice")
    return table


def safetensors_header(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> bytes:
    """The first bytes of a file that holds `(name, shape, dtype)` in this order, without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape, dtype in tensors:
        num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [position, position + num_bytes],
        }
        position += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return struct.pack("<Q", len(text)) + text
