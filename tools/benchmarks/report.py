"""What a benchmark hands back: a table to read, and the numbers in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    text: str  # Markdown
    numbers: Any  # plain lists, dicts and scalars
    ok: bool = True  # False: what was compared was not alike, and the numbers mean nothing


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
