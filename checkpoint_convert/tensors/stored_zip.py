"""A zip archive of uncompressed records, written as `zipfile` writes it to the byte, but with a quicker CRC-32."""

import struct
from collections.abc import Iterable
from typing import BinaryIO

from dpop_base.checksums import crc32

_VERSION, _UNIX = 20, 3
_TIME, _DATE = 0, 33  # 1980-01-01, as zipfile has it where nothing is said
_MODE = 0o600 << 16
_LIMIT = (1 << 32) - 1  # beyond it the format needs other headers: pieces of tensors are far below


class StoredZip:
    """Begins where `stream` stands; offsets in the archive are counted from there."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._base = stream, stream.tell()
        self._records: list[tuple[bytes, int, int, int]] = []  # name, CRC-32, bytes, offset

    def add(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """Writes a record; returns its CRC-32."""
        start = self._stream.tell()
        self._stream.write(_local_header(name.encode(), 0, 0))
        value = num_bytes = 0
        for part in parts:
            self._stream.write(part)
            value = crc32(part, value)
            num_bytes += len(part)
        end = self._stream.tell()
        assert end - self._base <= _LIMIT, name
        self._stream.seek(start)
        self._stream.write(_local_header(name.encode(), value, num_bytes))
        self._stream.seek(end)
        self._records.append((name.encode(), value, num_bytes, start - self._base))
        return value

    def finish(self) -> None:
        """Writes the directory of the records, with which the archive ends."""
        start = self._stream.tell() - self._base
        directory = b"".join(_entry(*record) for record in self._records)
        count = len(self._records)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
        self._stream.write(directory + end)


def _local_header(name: bytes, value: int, num_bytes: int) -> bytes:
    fields = (_VERSION, 0, 0, 0, _TIME, _DATE, value, num_bytes, num_bytes, len(name), 0)
    return struct.pack("<4s2B4HL2L2H", b"PK\3\4", *fields) + name


def _entry(name: bytes, value: int, num_bytes: int, offset: int) -> bytes:
    fields = (_VERSION, _UNIX, _VERSION, 0, 0, 0, _TIME, _DATE, value, num_bytes, num_bytes, len(name), 0, 0, 0, 0)
    return struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *fields, _MODE, offset) + name
