"""Digests of files by one process, or by all ranks together."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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
    rank, ranks = dist.get_rank(), dist.get_world_size()
    blocks: list[Block] = []
    mine: list[bytes] = []
    problem = ""
    try:
        blocks = blocks_of(dict.fromkeys(paths))
        mine = hash_blocks(blocks[rank::ranks])
    except OSError as error:
        problem = _unreadable(error)
    shares: list[Any] = [None] * ranks
    dist.all_gather_object(shares, (problem, mine))
    for found, _ in shares:
        if found:
            raise UserError(found)
    whole = [b""] * len(blocks)
    for of_rank, (_, hashes) in enumerate(shares):
        whole[of_rank::ranks] = hashes
    return joined(blocks, whole)


def named_digests(files: dict[str, Path], digests: Digests) -> dict[str, str]:
    found = digests(files.values())
    return {name: found[path] for name, path in files.items()}


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror}); restore it"
