"""Renders a page from its template and style sheet, and writes it whole or not at all."""

from pathlib import Path

import jinja2

from dpop_base.errors import UserError
from dpop_base.files import write_bytes

HERE = Path(__file__).parent
NAMED_COLOURS = 8  # that base.css defines
GOLDEN_ANGLE = 137.508  # degrees: spreads any number of further hues


def colour(index: int) -> str:
    """A CSS colour for a run or a model; the first are chosen, the others are hues of the same lightness."""
    if index < NAMED_COLOURS:
        return f"var(--run-{index + 1})"
    return f"oklch(var(--run-lightness) 0.13 {index * GOLDEN_ANGLE % 360:.0f})"


def render_page(folder: Path, *, series: int, **values: object) -> str:
    """`folder`'s page.html with `values`, and its page.css after the shared one.

    The template also gets `style` and `colours`, one of each of `series` runs or models; table.html has its tables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join(path.read_text(encoding="utf-8") for path in (HERE / "base.css", folder / "page.css"))
    colours = [colour(index) for index in range(series)]
    return environment.get_template("page.html").render(style=style, colours=colours, **values)


def write_page(output: Path, html: str) -> None:
    """Raises UserError where `output` cannot be written."""
    if output.is_dir():
        raise UserError(f"{output}: is a folder; give the name of the HTML file to write")
    try:
        write_bytes(output, html.encode("utf-8", "replace"))  # what runs wrote may hold halves of characters
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another file") from None
