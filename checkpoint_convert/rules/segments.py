"""Every layout is a concatenation of row ranges; so a layout is data, and its inverse is computed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Rows `[start, start + rows)` of tensor `source`, placed after the rows of the segments before it."""

    source: str
    start: int
    rows: int


def slice_segments(segments: Sequence[Segment], first: int, rows: int) -> Iterator[Segment]:
    """The parts of `segments` that make up rows `[first, first + rows)` of their concatenation."""
    position, end = 0, first + rows
    for segment in segments:
        low, high = max(first, position), min(end, position + segment.rows)
        if low < high:
            yield Segment(segment.source, segment.start + low - position, high - low)
        position += segment.rows
        if position >= end:
            return


def merge_adjacent(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Joins neighbours that are neighbours in their source too."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if last and last.source == segment.source and last.start + last.rows == segment.start:
            merged[-1] = Segment(last.source, last.start, last.rows + segment.rows)
        else:
            merged.append(segment)
    return tuple(merged)


def invert(target: str, segments: Sequence[Segment]) -> dict[str, tuple[Segment, ...]]:
    """
    Returns, by source of `target`, the rows of `target` that make it up. Raises ValueError unless every row of
    every source, from 0 to its last used one, is used once: then nothing is lost or doubled either way.
    """
    placed: dict[str, list[tuple[int, Segment]]] = {}
    position = 0
    for segment in segments:
        placed.setdefault(segment.source, []).append((segment.start, Segment(target, position, segment.rows)))
        position += segment.rows
    inverse = {}
    for source, parts in placed.items():
        parts.sort(key=lambda part: part[0])
        expected = 0
        for start, part in parts:
            if start != expected:
                raise ValueError(f"{source}: row {expected} is not used exactly once by {target}")
            expected += part.rows
        inverse[source] = merge_adjacent(part for _, part in parts)
    return inverse
