"""A row read back token by token, from nothing but its trees: what each token sees, and what is scored where."""

from megatron_dpop.rows.row import Row


def used_tokens(row: Row) -> int:
    return sum(sum(tree) for tree in row.trees)


def contexts(row: Row) -> list[tuple[int, ...]]:
    """For each token of the trees, in row order, the tokens it attends to, itself last."""
    found = []
    at = 0
    for trunk_tokens, *branch_tokens in row.trees:
        trunk = tuple(row.tokens[at : at + trunk_tokens].tolist())
        found += [trunk[: read + 1] for read in range(trunk_tokens)]
        at += trunk_tokens
        for tokens in branch_tokens:
            branch = tuple(row.tokens[at : at + tokens].tolist())
            found += [trunk + branch[: read + 1] for read in range(tokens)]
            at += tokens
    return found


def scored(row: Row) -> list[list[tuple[tuple[int, ...], int]]]:
    """For each sequence its scores as (context, target), shortest context first."""
    seen = contexts(row)
    sequences: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in row.sequence_lengths]
    for score, sequence in zip(row.member_score.tolist(), row.member_sequence.tolist(), strict=True):
        sequences[sequence].append((seen[row.score_positions[score]], int(row.score_targets[score])))
    return [sorted(scores, key=lambda pair: len(pair[0])) for scores in sequences]
