"""A file's digest covers every byte of it, and does not depend on who hashes which stretch."""

from pathlib import Path

import pytest

from checkpoint_convert import digests
from checkpoint_convert.digests import digest_files, hash_stretches, joined, stretches
from checkpoint_convert.errors import UserError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(digests, "STRETCH_BYTES", 1000)
    for name, size in (("empty", 0), ("short", 1), ("exact", 2000), ("long", 4321)):
        (tmp_path / name).write_bytes(bytes(at * 7 % 251 for at in range(size)))
    return sorted(tmp_path.iterdir())


def test_every_bit_counts(files: list[Path]) -> None:
    whole = digest_files(files)
    assert len(set(whole.values())) == len(files)
    (long,) = (path for path in files if path.name == "long")
    content = long.read_bytes()
    for at in range(0, len(content), 97):
        long.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        changed = digest_files(files)
        assert {path for path in files if changed[path] != whole[path]} == {long}
    long.write_bytes(content)
    assert digest_files(files, workers=1) == whole


def test_stretches_may_be_hashed_anywhere(files: list[Path]) -> None:
    parts = stretches(files)
    assert len(parts) == 1 + 1 + 2 + 5
    hashes: list[bytes] = [b""] * len(parts)
    for rank in range(3):
        hashes[rank::3] = hash_stretches(parts[rank::3])
    assert joined(parts, hashes) == digest_files(files)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: cannot be read"):
        digest_files([tmp_path / "none"])
