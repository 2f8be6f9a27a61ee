"""What the pairs of a file say against each other, and whether an answer's length alone tells which is chosen."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ..records import Record, identity
from .numbers import is_pair

MOST_BY_LENGTH = 0.7  # of the pairs of unequal lengths; beyond, a model may learn length and nothing else


class Directions:
    """Which way each pair of answers to a prompt was decided: 16 bytes and two counts for each."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[int]] = {}

    def add(self, record: Record, prompt: bytes) -> None:
        if is_pair(record):
            key, way = _undirected(record, prompt)
            self._seen.setdefault(key, [0, 0])[way] += 1

    def contradicts(self, record: Record, prompt: bytes) -> bool:
        """Whether a row that was added prefers the other answer."""
        if not is_pair(record):
            return False
        key, way = _undirected(record, prompt)
        return self._seen.get(key, (0, 0))[1 - way] > 0

    def contradictory(self) -> int:
        """Examples that another one contradicts."""
        return sum(one + other for one, other in self._seen.values() if one and other)


def _undirected(record: Record, prompt: bytes) -> tuple[bytes, int]:
    chosen, rejected = map(identity, record.completions)
    way = int(chosen > rejected)
    first, second = (rejected, chosen) if way else (chosen, rejected)
    return hashlib.sha256(prompt + f"{first}\0\0{second}".encode()).digest()[:16], way


def length_bias(chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, float]:
    """How well length alone tells chosen from rejected: within pairs, and over all answers (area under the curve)."""
    if not chosen:
        return {}
    left, right = np.asarray(chosen), np.asarray(rejected)
    longer, shorter = int((left > right).sum()), int((left < right).sum())
    ordered = np.sort(right)
    below, upto = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    auc = float((below + upto).mean() / (2 * len(right)))
    return {
        "chosen_longer": longer,
        "chosen_shorter": shorter,
        "equal": len(left) - longer - shorter,
        "accuracy": round(max(longer, shorter) / max(1, longer + shorter), 5),
        "auc": round(auc, 5),
    }
