"""What the token cache keeps is checked when it is read: damage is found, said, and built anew."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from dpop_base.errors import UserError

from .test_load import load, rows, tokens, write

FLIPS = 12


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_a_flipped_bit_is_found_and_the_tokens_are_built_anew(
    tmp_path: Path, llama: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cache = write(tmp_path / "a.jsonl", rows(6)), tmp_path / "cache"
    first = load(path, llama, cache=cache)
    expected, described = tokens(first), first.describe()
    (kept,) = cache.glob(f"*{suffix}")
    whole = kept.read_bytes()
    draw = random.Random(0)
    capsys.readouterr()
    for _ in range(FLIPS):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        again = load(path, llama, cache=cache)
        said = capsys.readouterr().err
        assert (tokens(again), again.describe()) == (expected, described)
        harmless = suffix == ".json" and not said  # white space between values
        assert harmless or "is damaged" in said, (at, bit)
        assert harmless or kept.read_bytes() == whole
        assert not harmless or whole[at : at + 1].isspace()


def test_a_missing_or_shortened_file_is_built_anew(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cache = write(tmp_path / "a.jsonl", rows(6)), tmp_path / "cache"
    expected = tokens(load(path, llama, cache=cache))
    (arrow,) = cache.glob("*.arrow")
    for spoil in (arrow.unlink, lambda: arrow.write_bytes(arrow.read_bytes()[:-1])):
        spoil()
        assert tokens(load(path, llama, cache=cache)) == expected
        assert f"{arrow}: is damaged" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(UserError, match=r"cache.*: the token cache cannot be used .*XDG_CACHE_HOME"):
        load(write(tmp_path / "a.jsonl", rows(6)), llama, cache=tmp_path / "cache" / "tokens")


def test_a_column_whose_name_no_encoding_has_is_kept_and_shown(tmp_path: Path, llama: Path) -> None:
    named = [{**row, "x\ud800y": 1} for row in rows(6)]
    path, cache = write(tmp_path / "a.jsonl", named), tmp_path / "cache"
    for _ in range(2):  # built, then read
        assert "a: not used: x?y (6 rows)" in load(path, llama, cache=cache).describe()
    words = [sys.executable, "-m", "megatron_dpop", "data", "inspect", str(path)]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    for more in ([], ["--json"]):
        done = subprocess.run([*words, *more], env=ascii_only, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unused"] == {"x\ud800y": 6}
