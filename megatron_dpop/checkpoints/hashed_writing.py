"""Digests of a checkpoint's files, made by the process that writes them while it writes.

The disk is the slower one: what has reached a file is hashed while the rest is on its way, so that a save takes no
longer. What is hashed is what can be read back.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from dpop_base.checksums import BLOCK_BYTES, Block, hash_blocks, joined

SECONDS_BETWEEN_LOOKS = 0.05


class Queue(Protocol):
    def put(self, item: dict[str, str], /) -> None: ...


def write_hashed(write: Callable[..., None], digests: Queue, *arguments: Any) -> None:
    """Calls Megatron's writer, and puts the digest of each of its files, by name, into `digests`.

    Of the writer's arguments the second are its buckets, of which each begins with its file's path. A writer that fails
    says so by itself, and leaves no digests.
    """
    paths = [Path(bucket[0]) for bucket in arguments[1]]
    written = threading.Event()
    with ThreadPoolExecutor(max(1, len(paths))) as followers:
        found = [followers.submit(_digest_while_written, path, written) for path in paths]
        try:
            write(*arguments)
        finally:
            written.set()
    if all(future.exception() is None for future in found):
        digests.put({path.name: future.result() for path, future in zip(paths, found, strict=True)})


def _digest_while_written(path: Path, written: threading.Event) -> str:
    """Hashes a file that grows at its end alone."""
    blocks: list[Block] = []
    hashes: list[bytes] = []
    position = 0
    while True:
        is_whole = written.is_set()
        size = path.stat().st_size if is_whole or path.exists() else 0
        while size - position >= BLOCK_BYTES or (is_whole and (position < size or not blocks)):
            blocks.append(Block(path, position, min(BLOCK_BYTES, size - position)))
            hashes += hash_blocks(blocks[-1:], workers=1)
            position += blocks[-1].num_bytes
        if is_whole:
            return joined(blocks, hashes)[path]
        written.wait(SECONDS_BETWEEN_LOOKS)
