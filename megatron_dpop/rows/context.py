"""What one context-parallel rank holds of a row: its tokens, what they see, and what is scored there. Pure numpy.

A row of T tokens is cut into 2 C equal chunks for C ranks; rank r holds chunks r and 2 C - 1 - r. In a causal sequence
the late chunks cost as much more than the middle as the early ones cost less, so that every rank has the same share
whether the row holds one long tree or many short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron_dpop.rows.row import Ints, Reals, Row


@dataclass(frozen=True)
class AttentionPlan:
    """Which keys each of a rank's query blocks sees.

    The rank's tokens are cut into consecutive blocks, the whole row's keys into consecutive pieces. Query t of a block
    of Q tokens that sees K keys sees the first K - Q + t + 1 of them.
    """

    query_tokens: tuple[int, ...]  # length of each block; together all of the rank's tokens
    key_tokens: tuple[int, ...]  # length of each piece; together the whole row
    seen: tuple[tuple[int, ...], ...]  # per block: the pieces that it sees, ascending; none for padding

    def seen_tokens(self) -> list[int]:
        """Keys that each block sees."""
        return [sum(self.key_tokens[piece] for piece in pieces) for pieces in self.seen]


@dataclass(frozen=True)
class RowShard:
    """One rank's part of a row. Scores and members keep the row's order; sums over ranks give the row's."""

    tokens: Ints  # [tokens]
    positions: Ints  # [tokens]
    attention: AttentionPlan
    score_positions: Ints  # [scores], index into the shard
    score_targets: Ints  # [scores]
    member_score: Ints  # [members], index into the shard's scores
    sequence_lengths: Ints  # [sequences], members of each sequence in this shard
    member_place: Ints  # [members], index into the row's members
    member_weight: Reals | None  # [members]; None where all count 1


def row_chunks(row_tokens: int, rank: int, ranks: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) in the row of the chunks that a rank holds, in the order in which it holds them."""
    if ranks == 1:
        return ((0, row_tokens),)
    size, rest = divmod(row_tokens, 2 * ranks)
    assert not rest, f"a row of {row_tokens} tokens does not divide over {ranks} context-parallel ranks"
    return tuple((chunk * size, (chunk + 1) * size) for chunk in (rank, 2 * ranks - 1 - rank))


def gathered_order(ranks: int) -> tuple[int, ...]:
    """Returns each chunk's place where the ranks' shards follow one another."""
    return tuple(2 * chunk if chunk < ranks else 2 * (2 * ranks - 1 - chunk) + 1 for chunk in range(2 * ranks))


def attention_plan(
    trees: Sequence[Sequence[int]], row_tokens: int, chunks: Sequence[tuple[int, int]] | None = None
) -> AttentionPlan:
    """The plan of a row whose trees are (trunk tokens, branch tokens, ...), for the rank that holds `chunks` of it."""
    chunks = ((0, row_tokens),) if chunks is None else chunks
    segments = _segments(trees, row_tokens)
    borders = {border for start, stop, _ in segments for border in (start, stop)}
    borders |= {border for chunk in chunks for border in chunk}
    cuts = sorted(borders | {0, row_tokens})
    piece_at = {start: piece for piece, start in enumerate(cuts[:-1])}

    def pieces(start: int, stop: int) -> tuple[int, ...]:
        return tuple(range(piece_at.get(start, 0), piece_at.get(stop, len(piece_at)))) if stop > start else ()

    query_tokens, seen = [], []
    for chunk_start, chunk_stop in chunks:
        for start, stop, trunk in segments:
            first, last = max(start, chunk_start), min(stop, chunk_stop)
            if first < last:
                query_tokens.append(last - first)
                seen.append(() if trunk is None else pieces(*trunk) + pieces(start, last))
    lengths = tuple(stop - start for start, stop in pairwise(cuts))
    return AttentionPlan(tuple(query_tokens), lengths, tuple(seen))


def _segments(trees: Sequence[Sequence[int]], row_tokens: int) -> list[tuple[int, int, tuple[int, int] | None]]:
    """(start, stop, the trunk that it continues) of each segment; a trunk continues nothing, padding has no trunk."""
    found: list[tuple[int, int, tuple[int, int] | None]] = []
    at = 0
    for trunk_tokens, *branches in trees:
        trunk = (at, at + trunk_tokens)
        found.append((*trunk, (at, at)))
        at += trunk_tokens
        for branch_tokens in branches:
            found.append((at, at + branch_tokens, trunk))
            at += branch_tokens
    assert at <= row_tokens, "the trees are longer than their row"
    return [*found, (at, row_tokens, None)]


def row_shard(row: Row, rank: int, ranks: int) -> RowShard:
    """What a rank of a context-parallel group of `ranks` holds of the row."""
    row_tokens = len(row.tokens)
    chunks = row_chunks(row_tokens, rank, ranks)
    held = np.concatenate([np.arange(start, stop) for start, stop in chunks])
    place = np.full(row_tokens, -1, dtype=np.int64)
    place[held] = np.arange(len(held))
    score_place = place[row.score_positions]
    is_mine = score_place >= 0
    score_index = np.cumsum(is_mine) - 1
    member_is_mine = is_mine[row.member_score]
    return RowShard(
        tokens=row.tokens[held],
        positions=row.positions[held],
        attention=attention_plan(row.trees, row_tokens, chunks),
        score_positions=score_place[is_mine],
        score_targets=row.score_targets[is_mine],
        member_score=score_index[row.member_score[member_is_mine]],
        sequence_lengths=np.bincount(row.member_sequence[member_is_mine], minlength=len(row.sequence_lengths)),
        member_place=np.flatnonzero(member_is_mine),
        member_weight=None if row.member_weight is None else row.member_weight[member_is_mine],
    )
