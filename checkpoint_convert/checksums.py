"""Checksums quick enough to be computed whenever weights are read or written: several GB/s a core, any number of cores.

They find accidents, not forgers: who can write a checkpoint can write its checksums too.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash
from zlib_ng import zlib_ng

BLOCK_BYTES = 64 << 20  # hashed by one thread; a digest is that of the blocks' digests, so this is part of its meaning
_READ_BYTES = 1 << 20  # stays in a core's cache between reading and hashing
ALGORITHM = f"xxh3-128/{BLOCK_BYTES >> 20}MiB"  # to be kept beside digests that are stored
_SEAL = "checksum"


def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """zlib's CRC-32, several times as fast as zlib computes it."""
    return int(zlib_ng.crc32(data, value))


def file_digests(paths: Iterable[Path], *, workers: int | None = None) -> dict[Path, str]:
    """
    The digest of each file's every byte, by `ALGORITHM`, as 32 hexadecimal digits. Files, and the blocks of large
    files, are read in parallel (`workers`: None is one a core, at most 16) in 1 MiB of memory each. Raises OSError,
    also for a file that shrinks while it is read.
    """
    sizes = {path: path.stat().st_size for path in paths}
    blocks = [(path, start) for path, size in sizes.items() for start in range(0, size, BLOCK_BYTES)]
    digests: dict[Path, list[bytes]] = {path: [] for path in sizes}
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        lengths = [min(BLOCK_BYTES, sizes[path] - start) for path, start in blocks]
        for (path, _), digest in zip(blocks, pool.map(_block_digest, blocks, lengths), strict=True):
            digests[path].append(digest)
    return {path: xxhash.xxh3_128_hexdigest(b"".join(parts)) for path, parts in digests.items()}


def _block_digest(block: tuple[Path, int], length: int) -> bytes:
    path, start = block
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while length:
            count = file.readinto(buffer[:length])
            if not count:
                raise OSError(None, "became shorter while it was read", str(path))
            digest.update(buffer[:count])
            length -= count
    return digest.digest()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself in it, which `unseal` checks."""
    return {**value, _SEAL: _own_checksum(value)}


def unseal(value: dict[str, Any]) -> dict[str, Any]:
    """What `seal` was given. Raises ValueError where it has changed since, or was never sealed."""
    rest = {name: part for name, part in value.items() if name != _SEAL}
    if value.get(_SEAL) != _own_checksum(rest):
        raise ValueError("its content does not fit its checksum")
    return rest


def _own_checksum(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())
