"""The row: trees of tokens, and the list of what is scored. Pure numpy.

A tree is a trunk (tokens that an example's completions share) and its branches. Token t of a segment attends to
the tokens before it in that segment and to the whole trunk; positions count from the trunk's start. A completion's
last token is scored but never read, so it is not in the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_dpop.data.examples import TokenizedExample

Ints = NDArray[np.int64]
Reals = NDArray[np.float32]


@dataclass(frozen=True)
class TokenWeights:
    """What each token of a completion counts in the completion's log-probability: 1, unless one of these says other."""

    unscored: frozenset[int] = frozenset()  # token ids that are read and never scored
    tail: float = 1.0  # of tokens beyond the length of the example's shortest completion

    def of_tokens(self, first: int, stop: int, *, shortest: int) -> Reals:
        """Weights of a completion's tokens `first` to `stop`, if the example's shortest completion has `shortest`."""
        return np.where(np.arange(first, stop) < shortest, 1.0, self.tail).astype(np.float32)

    def describe(self) -> str:
        """Tells one from another, in fingerprints; nothing where every token counts 1."""
        unscored = f" unscored {sorted(self.unscored)}" if self.unscored else ""
        return unscored + (f" tail {self.tail}" if self.tail != 1 else "")


@dataclass(frozen=True)
class Row:
    """One packed sequence. `sequences` are its completions, `examples` what they belong to, in row order.

    A score is a pair (hidden position, target token); `member_score[i]` counts towards `member_sequence[i]`. A token
    that all completions of an example share is scored once and counts towards each of them.
    """

    tokens: Ints  # [row_tokens], padded with 0
    positions: Ints  # [row_tokens], padded with 0
    trees: tuple[tuple[int, ...], ...]  # per tree: tokens of the trunk, then of each branch
    score_positions: Ints  # [scores], index into the row
    score_targets: Ints  # [scores], token ids
    member_score: Ints  # [members]
    member_sequence: Ints  # [members], ascending
    sequence_example: Ints  # [sequences], index into example_ids, ascending
    sequence_preferred: NDArray[np.bool_]  # [sequences]
    sequence_lengths: Ints  # [sequences], scored tokens
    member_weight: Reals | None  # [members], what each counts; None where all count 1
    example_ids: Ints  # [examples], index into the dataset


ALL_ALIKE = TokenWeights()


class _Builder:
    """Collects the trees and scores of one row."""

    def __init__(self, weights: TokenWeights) -> None:
        self.weights = weights
        self.unscored = np.array(sorted(weights.unscored), dtype=np.int64)
        self.segments: list[Ints] = []
        self.positions: list[Ints] = []
        self.trees: list[tuple[int, ...]] = []
        self.score_positions: list[Ints] = []
        self.score_targets: list[Ints] = []
        self.members: list[tuple[Ints, int]] = []
        self.member_weights: list[Reals] = []
        self.sequence_tokens: list[int] = []
        self.at = 0
        self.scores = 0

    def segment(self, tokens: Ints, first_position: int) -> int:
        """Appends a segment; returns where it starts in the row."""
        start = self.at
        self.segments.append(tokens)
        self.positions.append(np.arange(first_position, first_position + len(tokens)))
        self.at += len(tokens)
        return start

    def score(self, positions: Ints, targets: Ints, weights: Reals) -> tuple[Ints, Reals]:
        """Appends scores of the targets that are scored; returns their indices and weights."""
        if len(self.unscored):
            kept = ~np.isin(targets, self.unscored)
            positions, targets, weights = positions[kept], targets[kept], weights[kept]
        first = self.scores
        self.score_positions.append(positions)
        self.score_targets.append(targets)
        self.scores += len(targets)
        return np.arange(first, self.scores), weights

    def sequence(self, *scores: tuple[Ints, Reals]) -> None:
        indices = np.concatenate([found for found, _ in scores])
        self.member_weights += [weights for _, weights in scores]
        self.members.append((indices, len(self.sequence_tokens)))
        self.sequence_tokens.append(len(indices))

    def tree(self, prompt: Ints, completions: Sequence[Ints], *, shared: int, agreed: int, shortest: int) -> None:
        """Appends a tree whose trunk is the prompt and the first `shared` tokens of the completions.

        The first `agreed` tokens are the same in all completions; `shared` of them, and each completion is longer.
        The example's shortest completion, in this tree or another, has `shortest` tokens.
        """
        assert len(prompt), "a completion's first token needs a token before it"
        trunk = np.concatenate((prompt, completions[0][:shared]))
        trunk_start = self.segment(trunk, 0)
        first_score = trunk_start + len(prompt) - 1
        # Targets all completions share: the shared tokens, and the next one if it agrees but is some completion's last.
        common = min(shared + 1, agreed)
        weights = self.weights.of_tokens(0, common, shortest=shortest)
        common_scores = self.score(first_score + np.arange(common), completions[0][:common], weights)
        tokens = [len(trunk)]
        for completion in completions:
            branch = completion[shared:-1]
            start = self.segment(branch, len(trunk))
            tokens.append(len(branch))
            # Target j is predicted by the token before it: the trunk's last token for j = shared, then the branch.
            readers = np.concatenate(([first_score + shared], start + np.arange(len(branch))))
            weights = self.weights.of_tokens(common, len(completion), shortest=shortest)
            self.sequence(common_scores, self.score(readers[common - shared :], completion[common:], weights))
        self.trees.append(tuple(tokens))


def build_row(
    examples: Sequence[TokenizedExample],
    example_ids: Sequence[int],
    *,
    row_tokens: int,
    share_prefix: bool,
    weights: TokenWeights = ALL_ALIKE,
) -> Row:
    """Packs whole examples into one row of `row_tokens` tokens. They must fit (`megatron_dpop.rows.shapes` tells)."""
    builder = _Builder(weights)
    for example in examples:
        prompt = example.prompt.astype(np.int64)
        completions = [completion.astype(np.int64) for completion in example.completions]
        shortest = min(len(completion) for completion in completions)
        if share_prefix:
            agreed = shortest if len(completions) == 1 else example.common_prefix_tokens
            builder.tree(prompt, completions, shared=min(agreed, shortest - 1), agreed=agreed, shortest=shortest)
        else:
            for completion in completions:
                tokens = len(completion)
                builder.tree(prompt, [completion], shared=tokens - 1, agreed=tokens, shortest=shortest)
    assert builder.at <= row_tokens, "the examples do not fit the row"
    sequences = [len(example.completions) for example in examples]
    preferred = [flag for example in examples for flag in example.preferred]
    return Row(
        tokens=_padded(builder.segments, row_tokens),
        positions=_padded(builder.positions, row_tokens),
        trees=tuple(builder.trees),
        score_positions=_joined(builder.score_positions),
        score_targets=_joined(builder.score_targets),
        member_score=_joined([scores for scores, _ in builder.members]),
        member_sequence=_joined([np.full(len(scores), sequence) for scores, sequence in builder.members]),
        sequence_example=np.repeat(np.arange(len(examples)), sequences),
        sequence_preferred=np.array(preferred, dtype=np.bool_),
        sequence_lengths=np.array(builder.sequence_tokens, dtype=np.int64),
        member_weight=np.concatenate([np.empty(0, np.float32), *builder.member_weights]) if weights.tail != 1 else None,
        example_ids=np.array(example_ids, dtype=np.int64),
    )


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)


def _padded(parts: Sequence[Ints], row_tokens: int) -> Ints:
    row = np.zeros(row_tokens, dtype=np.int64)
    filled = _joined(parts)
    row[: len(filled)] = filled
    return row
