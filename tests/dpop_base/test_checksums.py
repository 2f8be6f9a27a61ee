"""Checksums: every byte counts, however a file is cut into blocks and whoever reads them."""

import random
import zlib
from pathlib import Path

import pytest

from dpop_base import checksums
from dpop_base.checksums import blocks_of, crc32, file_digests, hash_blocks, joined, seal, unseal


def test_a_digest_depends_on_every_byte_and_on_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1000)
    content = random.Random(0).randbytes(3500)
    one, same = tmp_path / "one", tmp_path / "same"
    one.write_bytes(content)
    same.write_bytes(content)
    found = file_digests([one, same])
    assert found[one] == found[same] == file_digests([one], workers=1)[one]
    for at in range(0, 3500, 97):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        same.write_bytes(changed)
        assert file_digests([same])[same] != found[one], at
    same.write_bytes(content[1000:2000] + content[:1000] + content[2000:])
    assert file_digests([same])[same] != found[one], "blocks have an order"
    same.write_bytes(content[:3000])
    assert file_digests([same])[same] != found[one]


def test_blocks_may_be_hashed_by_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1000)
    files = [tmp_path / str(size) for size in (0, 1, 2000, 4321)]
    for path in files:
        path.write_bytes(random.Random(0).randbytes(int(path.name)))
    blocks = blocks_of(files)
    assert len(blocks) == 1 + 1 + 2 + 5
    hashes = [b""] * len(blocks)
    for rank in range(3):
        hashes[rank::3] = hash_blocks(blocks[rank::3])
    assert joined(blocks, hashes) == file_digests(files)


def test_the_quick_crc_is_zlibs() -> None:
    data = random.Random(1).randbytes(100_001)
    assert crc32(data) == zlib.crc32(data) == crc32(memoryview(data)[50:], crc32(data[:50]))


def test_a_seal_holds_through_json_and_breaks_with_any_value() -> None:
    sealed = seal({"b": [1, 2.5, None], "a": {"ü": "x"}})
    assert unseal(dict(reversed(sealed.items()))) == {"b": [1, 2.5, None], "a": {"ü": "x"}}
    for broken in ({**sealed, "b": [1, 2.5]}, {**sealed, "c": 1}, {"b": [1, 2.5, None], "a": {"ü": "x"}}):
        with pytest.raises(ValueError, match="checksum"):
            unseal(broken)
