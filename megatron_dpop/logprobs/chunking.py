"""How the (scored tokens x vocabulary) matrix of logits is cut into tiles that are alive one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.torch_version import TorchVersion


@dataclass(frozen=True)
class Chunking:
    """Shape of a tile of logits.

    A token chunk shorter than `tokens` is padded with zero rows to a multiple of `row_tile`: matrix
    libraries pick another kernel, hence another order of summation, for very few rows.
    """

    tokens: int
    vocab: int
    row_tile: int

    def __post_init__(self) -> None:
        if min(self.tokens, self.vocab, self.row_tile) < 1 or self.tokens % self.row_tile:
            raise ValueError(f"{self}: sizes must be positive and tokens a multiple of row_tile")

    def token_chunks(self, num_scores: int) -> Iterator[tuple[slice, int]]:
        """Yields each chunk's slice of the scores, and its number of rows after padding."""
        for start in range(0, num_scores, self.tokens):
            stop = min(start + self.tokens, num_scores)
            yield slice(start, stop), -(-(stop - start) // self.row_tile) * self.row_tile

    def vocab_blocks(self, rows: int) -> Iterator[slice]:
        """Slices of the local weight's first `rows` rows."""
        for start in range(0, rows, self.vocab):
            yield slice(start, min(start + self.vocab, rows))


def default_chunking(device: torch.device) -> Chunking:
    """Tiles that fit a CPU core's caches; on a GPU, products large enough to keep it busy.

    On an H100 at Qwen-72B's shape (hidden size 8192, docs/gpu_results.md) tiles of 4096 x 8192 were 3% faster than
    4096 x 4096 and took 335 MB beside inputs and gradients, where these take 235, a tenth of the logits of 4096 tokens.
    """
    if device.type == "cpu":
        return Chunking(tokens=512, vocab=512, row_tile=64 if _sums_rows_alike() else 512)
    if torch.cuda.get_device_capability(device) >= (9, 0):
        return Chunking(tokens=4096, vocab=4096, row_tile=128)
    return Chunking(tokens=2048, vocab=2048, row_tile=256)


def _sums_rows_alike() -> bool:
    """Whether bf16 products on CPUs have the same bits in a row, however many rows of 64 there are.

    Seen to hold with torch 2.13; with 2.11, matrix tiles sum in another order where there are fewer rows.
    """
    return TorchVersion(torch.__version__) >= "2.13"
