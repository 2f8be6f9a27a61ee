"""What the pages share."""

import re
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.pages import colour, write_page
from megatron_dpop.pages.page import HERE, NAMED_COLOURS


def test_each_series_has_its_own_colour() -> None:
    colours = [colour(index) for index in range(40)]
    assert len(set(colours)) == 40
    style = (HERE / "base.css").read_text()
    for index in range(1, NAMED_COLOURS + 1):
        assert len(re.findall(rf"--run-{index}: #[0-9a-f]{{6}};", style)) == 2  # light and dark


def test_what_cannot_be_written_is_named_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the name of the HTML file"):
        write_page(tmp_path, "<p>")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"page\.html: cannot be written \(.+\); choose another file"):
        write_page(tmp_path / "file" / "page.html", "<p>")
    assert (tmp_path / "file").read_text() == "kept"
