"""Which tokens' experts are compared with the reference's: few enough to be kept for every run. Pure numpy."""

import numpy as np

from megatron_dpop.rows.context import RowShard
from megatron_dpop.rows.row import Ints, Row

MOST_EXAMPLES = 1 << 16  # of a dataset: what is kept of their routes is bounded


def routed_every(examples: int) -> int:
    """Returns n where every n-th of so many examples is looked at: 1 up to 65,536 of them."""
    return -(-examples // MOST_EXAMPLES)


def routed_tokens(row: Row, shard: RowShard, *, every: int, part: int, parts: int) -> tuple[Ints, Ints]:
    """Where this rank's routers see the token that predicts the middle one of each completion's scored tokens.

    Returns the completions, as indices into the row's sequences, and the places of their tokens in part number `part`
    of `parts` equal ones of the shard; of examples that are a multiple of `every`.
    """
    lengths = row.sequence_lengths
    middle = np.cumsum(lengths) - lengths + lengths // 2  # [sequences], index into the row's members
    wanted = np.flatnonzero((lengths > 0) & (row.example_ids[row.sequence_example] % every == 0))
    found = np.searchsorted(shard.member_place, middle[wanted])
    is_here = np.isin(middle[wanted], shard.member_place)
    sequences = wanted[is_here]
    places = shard.score_positions[shard.member_score[found[is_here]]]
    tokens = len(shard.tokens) // parts
    mine = places // tokens == part
    return sequences[mine], places[mine] - part * tokens
