"""Checksums quick enough to be computed whenever weights are read or written: several GB/s a core, any number of cores.

They find accidents, not forgers: who can write a checkpoint can write its checksums too.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Block:
    """A part of a file that one thread, or one machine, hashes by itself."""

    path: Path
    start: int
    num_bytes: int


def file_digests(paths: Iterable[Path], *, workers: int | None = None) -> dict[Path, str]:
    """
    The digest of each file's every byte, by `ALGORITHM`, as 32 hexadecimal digits. Files, and the blocks of large
    files, are read in parallel (`workers`: None is one a core, at most 16) in 1 MiB of memory each. Raises OSError,
    also for a file that shrinks while it is read.
    """
    blocks = blocks_of(paths)
    return joined(blocks, hash_blocks(blocks, workers=workers))


def blocks_of(paths: Iterable[Path]) -> list[Block]:
    """The parts of each file, in order; a file that is empty has one."""
    blocks = []
    for path in paths:
        size = path.stat().st_size
        starts = range(0, max(size, 1), BLOCK_BYTES)
        blocks += [Block(path, start, min(BLOCK_BYTES, size - start)) for start in starts]
    return blocks


def hash_blocks(blocks: Sequence[Block], *, workers: int | None = None) -> list[bytes]:
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(_block_hash, blocks))


def joined(blocks: Sequence[Block], hashes: Sequence[bytes]) -> dict[Path, str]:
    """Each file's digest from its blocks' hashes, whoever computed them."""
    of_file: dict[Path, list[bytes]] = {}
    for block, value in zip(blocks, hashes, strict=True):
        of_file.setdefault(block.path, []).append(value)
    return {path: digest(b"".join(values)) for path, values in of_file.items()}


def digest(data: bytes | bytearray | memoryview) -> str:
    """Returns the digest of bytes in memory, which are not cut into blocks."""
    return str(xxhash.xxh3_128_hexdigest(data))


def _block_hash(block: Block) -> bytes:
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES))
    left = block.num_bytes
    with open(block.path, "rb", buffering=0) as file:
        file.seek(block.start)
        while left:
            count = file.readinto(buffer[:left])
            if not count:
                raise OSError(None, "became shorter while it was read", str(block.path))
            state.update(buffer[:count])
            left -= count
    return bytes(state.digest())


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
