"""Renders a page from its template and style sheet, and writes it whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from dpop_base.errors import UserError
from dpop_base.files import write_bytes
from megatron_dpop.pages.colours import style as colours_style

HERE = Path(__file__).parent


def render_page(folder: Path, *, colours: Sequence[str], **values: object) -> str:
    """`folder`'s page.html with `values`, and its page.css after the shared one.

    The template also gets `style`, and `colours`: one for each run or model; table.html has its tables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheets = (path.read_text(encoding="utf-8") for path in (HERE / "base.css", folder / "page.css"))
    style = "".join([colours_style(), *sheets])
    return environment.get_template("page.html").render(style=style, colours=colours, **values)


def write_page(output: Path, html: str) -> None:
    """Raises UserError where `output` cannot be written."""
    if output.is_dir():
        raise UserError(f"{output}: is a folder; give the name of the HTML file to write")
    try:
        write_bytes(output, html.encode("utf-8", "replace"))  # what runs wrote may hold halves of characters
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another file") from None
