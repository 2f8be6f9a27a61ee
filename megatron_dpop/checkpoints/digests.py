"""Digests of files by one process, or by all ranks together."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from dpop_base.checksums import Block, blocks_of, file_digests, hash_blocks, joined
from dpop_base.errors import UserError

Digests = Callable[[Iterable[Path]], dict[Path, str]]


def digests_here(paths: Iterable[Path]) -> dict[Path, str]:
    """Reads the files in this process alone. Raises UserError for a file that cannot be read."""
    try:
        return file_digests(dict.fromkeys(paths))
    except OSError as error:
        raise UserError(_unreadable(error)) from None


def digests_by_all_ranks(paths: Iterable[Path]) -> dict[Path, str]:
    """Each rank reads its share, of files that all of them see; every rank calls it, with the same paths, and gets all.

    Raises UserError, on all ranks, for a file that one of them cannot read.
    """
    return _gathered(_Share.read(paths))


def begin_digests(paths: Iterable[Path]) -> Digests:
    """Begins to read the files in a thread, each rank its share; every rank calls it, with the same paths.

    What it returns is `digests_by_all_ranks`, except that these files' digests are those of the reading that was begun.
    """
    begun = set(paths)
    reader = ThreadPoolExecutor(1)
    share = reader.submit(_Share.read, sorted(begun))
    reader.shutdown(wait=False)

    def digests(paths: Iterable[Path]) -> dict[Path, str]:
        asked = list(paths)
        return _gathered(share.result()) if begun.issuperset(asked) else digests_by_all_ranks(asked)

    return digests


@dataclass(frozen=True)
class _Share:
    """What one rank found: all files' blocks, the hashes of its own, and what it could not read."""

    blocks: list[Block]
    hashes: list[bytes]
    problem: str = ""

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        try:
            blocks = blocks_of(dict.fromkeys(paths))
            return cls(blocks, hash_blocks(blocks[dist.get_rank() :: dist.get_world_size()]))
        except OSError as error:
            return cls([], [], _unreadable(error))


def _gathered(share: _Share) -> dict[Path, str]:
    """Every rank calls it with its share."""
    ranks = dist.get_world_size()
    shares: list[Any] = [None] * ranks
    dist.all_gather_object(shares, (share.problem, share.hashes))
    for problem, _ in shares:
        if problem:
            raise UserError(problem)
    whole = [b""] * len(share.blocks)
    for rank, (_, hashes) in enumerate(shares):
        whole[rank::ranks] = hashes
    return joined(share.blocks, whole)


def named_digests(files: dict[str, Path], digests: Digests) -> dict[str, str]:
    found = digests(files.values())
    return {name: found[path] for name, path in files.items()}


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror}); restore it"
