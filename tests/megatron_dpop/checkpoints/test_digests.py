"""Digests that all ranks make together are those of one process."""

from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.checkpoints.digests import digests_by_all_ranks, digests_here
from tests.distributed import run_ranks


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one", "two", "empty")]
    for path, content in zip(paths, (b"a" * 5_000_000, b"b", b""), strict=True):
        path.write_bytes(content)
    return paths


def _compare(files: list[Path]) -> None:
    expected = digests_here(files)
    assert digests_by_all_ranks(files) == expected
    with pytest.raises(UserError, match="missing: cannot be read"):
        digests_by_all_ranks([files[0].with_name("missing")])


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_ranks_find_what_one_process_does(files: list[Path], ranks: int) -> None:
    run_ranks(_compare, ranks, files)
