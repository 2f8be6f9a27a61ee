"""What a launcher's variables must say, and what is said where they do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.runtime.rank import Rank, launched
from megatron_dpop.runtime.rendezvous import master_address

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _set(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("values", [{}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "0"}])
def test_nothing_or_nothing_whole_is_no_launcher(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    _set(monkeypatch, **values)
    assert not launched()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK is 'two' in the environment, which is no number"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4 and WORLD_SIZE 4"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE 0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is 4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "do not say where the ranks meet"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": ""}, "do not say where the ranks meet"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "99999"}, "do not say where"),
    ],
)
def test_what_makes_no_sense_is_one_line(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], says: str) -> None:
    _set(monkeypatch, **values)
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        master_address(Rank.from_environment())


def test_ranks_of_one_node_meet_without_a_name_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "29500"}
    _set(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **where)
    assert master_address(Rank.from_environment()) == ("127.0.0.1", 29500)
    _set(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1", **where)
    assert master_address(Rank.from_environment()) == ("no-such-host.invalid", 29500)


def test_a_rank_alone_needs_no_address(tmp_path: Path) -> None:
    """As left over in a shell: RANK and WORLD_SIZE of one, and no MASTER_ADDR."""
    code = (
        "from megatron_dpop.runtime.rank import Rank; from datetime import timedelta;"
        "from megatron_dpop.runtime.rendezvous import meet; import torch.distributed as dist;"
        "store = meet(Rank.from_environment(), timedelta(seconds=9));"
        "dist.init_process_group('gloo', store=store, rank=0, world_size=1);"
        "dist.barrier(); print('met')"
    )
    left = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**left, "RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "met", done.stderr
