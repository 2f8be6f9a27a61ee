"""Digests of whole files: every byte is read, by several threads, each stretch of a file on its own.

The hash is XXH3 of 128 bits, which keeps up with memory: it finds damage and tells contents apart. It is no proof
against somebody who forges a file on purpose; who can write into a model's folder can do that anyway.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import xxhash

from checkpoint_convert.errors import UserError

ALGORITHM = "xxh3-128 of 256 MiB stretches"
STRETCH_BYTES = 256 << 20
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Stretch:
    """A part of a file that one thread, or one machine, hashes by itself."""

    path: Path
    start: int
    num_bytes: int


def stretches(paths: Iterable[Path]) -> list[Stretch]:
    """The parts of each file, in order; a file that is empty has one. Raises UserError for one that is not there."""
    found = []
    for path in paths:
        size_bytes = _size(path)
        starts = [*range(0, max(size_bytes, 1), STRETCH_BYTES), size_bytes]
        found += [Stretch(path, first, end - first) for first, end in pairwise(starts)]
    return found


def hash_stretches(parts: Sequence[Stretch], *, workers: int | None = None) -> list[bytes]:
    """Raises UserError where a file cannot be read, or is shorter than it was."""
    if not parts:
        return []
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        return list(pool.map(_hash, parts))


def joined(parts: Sequence[Stretch], hashes: Sequence[bytes]) -> dict[Path, str]:
    """Each file's digest from its stretches' hashes."""
    whole: dict[Path, xxhash.xxh3_128] = {}
    for part, value in zip(parts, hashes, strict=True):
        whole.setdefault(part.path, xxhash.xxh3_128()).update(value)
    return {path: digest.hexdigest() for path, digest in whole.items()}


def digest_files(paths: Iterable[Path], *, workers: int | None = None) -> dict[Path, str]:
    """Each file's digest. Raises UserError where one cannot be read."""
    parts = stretches(paths)
    return joined(parts, hash_stretches(parts, workers=workers))


def digest_bytes(*parts: bytes) -> str:
    """Of what is in memory, without stretches."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())


def default_workers() -> int:
    return min(8, 2 * (os.cpu_count() or 1))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _hash(part: Stretch) -> bytes:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_READ_BYTES, max(part.num_bytes, 1))))
    done = 0
    try:
        descriptor = os.open(part.path, os.O_RDONLY)
        try:
            while done < part.num_bytes:
                left = buffer[: part.num_bytes - done]
                count = os.preadv(descriptor, [left], part.start + done)
                if count == 0:
                    raise UserError(f"{part.path}: became shorter while it was read; leave it alone and run again")
                digest.update(left[:count])
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(part.path, error) from None
    return bytes(digest.digest())


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}); restore it")
