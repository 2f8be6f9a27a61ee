"""Means over tokens before, at and after the first differing one of a pair's completions. Pure numpy.

arXiv 2402.13228, section 5 and figure 3: on pairs that differ in few tokens DPO lowers the chosen completion's
log-probability after the edit, where both completions go on with the same tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES = ("chosen", "rejected")
SPANS = ("before", "first", "after")  # the first differing token, and the tokens on either side of it
OFFSETS = range(-16, 49)  # tokens from the first differing one


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a pair's completions, int32 [tokens]; the first `common` of them agree."""

    prompt: NDArray[np.int32]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    common: int


@dataclass(frozen=True)
class PairLogps:
    """What a model says of each token of a pair's completions, given those before it: nats, fp32 [tokens]."""

    chosen: NDArray[np.float32]
    rejected: NDArray[np.float32]


@dataclass(frozen=True)
class Mean:
    """Over `count` tokens (or completions); None where there are none."""

    value: float | None
    count: int


@dataclass(frozen=True)
class SideSummary:
    """One side of all pairs."""

    spans: Mapping[str, Mean]  # of SPANS, over tokens
    completion: Mean  # log-probability summed over a completion's tokens, over completions
    positions: tuple[Mean, ...]  # at each of OFFSETS, over the completions that have a token there


def spans(common: int) -> dict[str, slice]:
    """Where the SPANS lie in a completion whose first `common` tokens are shared."""
    return {"before": slice(0, common), "first": slice(common, common + 1), "after": slice(common + 1, None)}


def summarise(logps: Sequence[NDArray[np.float32]], common: Sequence[int]) -> SideSummary:
    """logps: of one side's completions, nats [tokens] each; common: shared tokens of each pair."""
    parts = {
        name: [values[spans(shared)[name]] for values, shared in zip(logps, common, strict=True)] for name in SPANS
    }
    return SideSummary(
        spans={name: mean(np.concatenate(found)) for name, found in parts.items()},
        completion=mean(np.array([values.sum(dtype=np.float64) for values in logps])),
        positions=tuple(
            mean(
                np.array(
                    [
                        values[shared + offset]
                        for values, shared in zip(logps, common, strict=True)
                        if 0 <= shared + offset < len(values)
                    ]
                )
            )
            for offset in OFFSETS
        ),
    )


def mean(values: NDArray[np.floating]) -> Mean:
    return Mean(float(values.mean(dtype=np.float64)) if len(values) else None, len(values))


def share_below(
    logps: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]], common: Sequence[int]
) -> Mean:
    """Share of completions whose mean after the first differing token is below the reference's."""
    after = [spans(shared)["after"] for shared in common]
    below = [
        values[part].sum(dtype=np.float64) < base[part].sum(dtype=np.float64)
        for values, base, part in zip(logps, reference, after, strict=True)
        if len(values[part])
    ]
    return mean(np.array(below, dtype=np.float64))
