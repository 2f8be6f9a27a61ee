"""Footers of parquet files: what they say of columns, and files whose footers contradict themselves."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run
from megatron_dpop.data.files.parquet_footer import parquet_footers
from megatron_dpop.data.files.rows import Location, find_rows

TABLE = pyarrow.table(
    {
        "prompt": ["Q", "R", "S"],
        "user": [1, None, 3],
        "user.id": [None, None, "x"],
        "tags": [["a", "b"], [], ["c"]],
        "nothing": pyarrow.array([[], None, []], pyarrow.list_(pyarrow.string())),
        "image": pyarrow.array([{"bytes": b"\xff" * 9000, "path": None}] * 3),
    }
)
# A column's entry begins with its type, 6 (text) as a zigzag integer, and the list of its encodings.
TYPE_IN_ENTRY, ANOTHER_TYPE = b"\x15\x0c\x19", b"\x15\x0e\x19"


def write(path: Path, table: pyarrow.Table = TABLE) -> Path:
    pyarrow.parquet.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
    return path


def contradict(path: Path) -> Path:
    """Its schema says that the first column is text; that column's entry says otherwise."""
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert TYPE_IN_ENTRY in content[footer:]
    path.write_bytes(content[:footer] + content[footer:].replace(TYPE_IN_ENTRY, ANOTHER_TYPE, 1))
    return path


def test_columns_with_what_they_hold(tmp_path: Path) -> None:
    (footer,) = parquet_footers([write(tmp_path / "a.parquet")])
    assert footer.rows == 3
    assert footer.filled_rows == {"prompt": 3, "user": 2, "user.id": 1, "tags": 3, "nothing": 0, "image": 3}
    assert footer.binary == ["image"]
    assert footer.size_bytes["image"] > 3 * 9000
    assert footer.size_bytes.keys() == footer.filled_rows.keys()


def test_a_file_of_rows_counts_columns_over_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet")
    rows = find_rows(Location(str(tmp_path / "*.parquet")))
    assert rows.filled_beside({"prompt", "user.id", "image"}) == {"user": 4, "tags": 6}
    assert rows.bulky_columns() == ["image"]


def test_a_footer_that_contradicts_itself_ends_no_process(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.parquet"), contradict(write(tmp_path / "bad.parquet"))
    with pytest.raises(UserError, match=r"bad\.parquet: not a whole parquet file \(.*type.*\); write it again$"):
        parquet_footers([good, bad, good])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.parquet"), tmp_path / "line\nfeed.parquet"
    bad.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"line\?feed\.parquet: not a whole parquet file \(.*\); write it again$"):
        parquet_footers([good, bad])


def test_a_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = contradict(write(tmp_path / "bad.parquet"))
    assert run(["data", "inspect", str(bad)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"megatron-dpop: error: {bad}: not a whole parquet file (")
    assert error.count("\n") == 1
