"""Blends of sources: a weight says how often each example of a source occurs in one pass."""

import math
from collections.abc import Sequence

import numpy as np

from dpop_base.errors import UserError

MAX_REPEATED = 50_000_000  # examples that a weight above 1 may make of a source: each takes 16 bytes of the order


def blend_order(counts: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """int64 [n, 2] of (source, example): a pure function of counts and weights.

    Weight 1 takes every example once, 2 twice, 0.5 a fixed half of them, spread evenly over the source. The half
    is fixed so that an example that is never trained on needs no reference log-probabilities.
    """
    parts = []
    for source, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"data: weight {weight} of source {source + 1}; give a number above 0")
        if weight > 1 and weight * count > MAX_REPEATED:
            raise UserError(
                f"data: weight {weight:g} of source {source + 1} makes {weight * count:.3g} examples of its {count}; "
                f"give a weight that makes at most {MAX_REPEATED:,}"
            )
        copies, share = divmod(weight, 1.0)
        some = round(share * count)
        rows = np.concatenate([np.tile(np.arange(count), int(copies)), np.arange(some) * count // max(some, 1)]).astype(
            np.int64
        )
        if not len(rows):
            raise UserError(f"data: weight {weight} of source {source + 1} leaves none of its {count} examples")
        parts.append(np.stack([np.full(len(rows), source, np.int64), rows], axis=1))
    return np.concatenate(parts)
