"""What each token of a row counts in its example: the same with prefixes shared and not. Pure numpy."""

import numpy as np

from megatron_dpop.rows.context import row_chunks
from megatron_dpop.rows.row import Ints, Reals, Row


def token_shares(row: Row) -> tuple[Ints, Reals]:
    """Returns each token's example, as an index into the row's, and its share of it: [row_tokens] both.

    A token counts once for each completion that it stands before or in; an example's shares add up to 1. Padding has
    none, of the first example.
    """
    example, share = np.zeros(len(row.tokens), dtype=np.int64), np.zeros(len(row.tokens), dtype=np.float32)
    at, sequence = 0, 0
    for tree in row.trees:
        branches = len(tree) - 1
        tokens = sum(tree)
        example[at : at + tokens] = row.sequence_example[sequence]
        share[at : at + tree[0]] = branches
        share[at + tree[0] : at + tokens] = 1
        at += tokens
        sequence += branches
    totals = np.bincount(example, weights=share, minlength=len(row.example_ids))
    return example, (share / totals[example]).astype(np.float32)


def seen_by_routers(tokens: int, *, rank: int, ranks: int, part: int, parts: int) -> Ints:
    """Indices into a row of `tokens` tokens of those in part `part` of `parts` of a context-parallel rank's shard."""
    held = np.concatenate([np.arange(start, stop) for start, stop in row_chunks(tokens, rank, ranks)])
    return held[part * len(held) // parts : (part + 1) * len(held) // parts]
