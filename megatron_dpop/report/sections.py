"""What a caller may add to a report: tables and pictures under a title of their own."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpop_base.errors import UserError

MediaType = Literal["image/png", "image/svg+xml"]
MEDIA_TYPES: dict[str, MediaType] = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class TableRow:
    """One line of a table. `is_marked`: its cells differ, and the page says so."""

    label: str
    cells: Sequence[str]
    is_marked: bool = False
    run: int | None = None  # index of the run whose colour the label carries


@dataclass(frozen=True)
class Table:
    """`columns` names the cells of each row; `corner` heads the column of labels."""

    columns: Sequence[str]
    rows: Sequence[TableRow]
    corner: str = ""
    caption: str = ""
    is_text: bool = False  # words, set to the left; numbers are set to the right

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row.cells) == len(self.columns), f"row {row.label!r} has {len(row.cells)} cells"


@dataclass(frozen=True)
class Figure:
    """A picture that the page carries inside itself. `alt` says in words what it shows."""

    image: bytes
    media_type: MediaType
    alt: str
    caption: str = ""

    @classmethod
    def read(cls, path: Path, *, alt: str, caption: str = "") -> "Figure":
        """Reads a .png or .svg file. Raises UserError for another kind, or one that cannot be read."""
        media_type = MEDIA_TYPES.get(path.suffix.lower())
        if media_type is None:
            raise UserError(f"{path}: not a picture that a report can carry; give a .png or .svg file")
        try:
            image = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing picture") from None
        return cls(image, media_type, alt, caption)

    @property
    def address(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True)
class Section:
    """Shown after the first chart, in the order given: paragraphs, then tables, then figures. All text is escaped."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
