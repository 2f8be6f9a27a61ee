"""A row of a data file with its place there, as all readers of files yield it."""

from typing import Any

LocatedRow = tuple[str, dict[str, Any]]  # ("row 3" or "line 3", counted from 1; columns)
