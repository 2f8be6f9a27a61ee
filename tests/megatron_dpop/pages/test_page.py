"""What the pages share."""

from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.pages import write_page


def test_what_cannot_be_written_is_named_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the name of the HTML file"):
        write_page(tmp_path, "<p>")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"page\.html: cannot be written \(.+\); choose another file"):
        write_page(tmp_path / "file" / "page.html", "<p>")
    assert (tmp_path / "file").read_text() == "kept"
