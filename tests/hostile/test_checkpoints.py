"""Checkpoints that try to run code: refused in one line, or used without what they planted; nothing is ever run.

By an audit hook in the rank that loads them. The same through the commands: `test_commands.py`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from dpop_base.errors import UserError
from tests.distributed import leave_model_parallel, run_ranks
from tests.hostile import payloads
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here


def _watched_runs(trees: list[dict], canary: str, log: str) -> list[str]:
    """Trains each config in this rank; "trained", or what it was refused with."""
    os.environ.update(HOSTILE_CANARY=canary, HOSTILE_LOG=log)
    from tests.hostile.watched import sitecustomize

    assert log == sitecustomize.LOG
    sys.audit("hostile.test", canary)  # so that a hook that sees nothing is noticed
    ends = []
    for tree in trees:
        try:
            train_here(tree)
            ends.append("trained")
        except UserError as error:
            ends.append(str(error))
            leave_model_parallel()
    return ends


AS_MODEL: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "objects beside tensors": (payloads.unpickled_beside_tensors, "trained"),
    "objects in place of common.pt": (payloads.unpickled_in_place_of_a_common_file, "trained"),
    "common.pt": (payloads.common_file, "trained"),
    "metadata": (payloads.metadata_file, "refused, it names"),
    "a tensor": (payloads.tensor, "refused, it names"),
}
# A run may go on from an older checkpoint in place of one that is refused.
OF_A_RUN: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "common state": (payloads.common_of_a_run, ""),
    "optimizer": (payloads.optimizer_of_a_run, ""),
    "common.pt": (payloads.common_file, ""),
}


def _tree(folder: Path, model: Path, run: str) -> dict:
    tree = write_config(folder, model, train={"steps": 4}, checkpoint={"every": 2}, run={"dir": str(folder / run)})
    return {**tree, "loss": {"name": "sft"}}


@pytest.mark.timeout(600)
def test_nothing_of_a_megatron_checkpoint_is_run(tmp_path: Path) -> None:
    canary, log = tmp_path / "canary", tmp_path / "log"
    write_model(tmp_path / "model", num_hidden_layers=2)
    write_pairs(tmp_path / "pairs.jsonl", 8)
    hf_to_megatron(tmp_path / "model", tmp_path / "megatron", progress=False)
    run_ranks(train_here, 1, _tree(tmp_path, tmp_path / "megatron", "run"))
    trees, wanted = [], []
    for name, (make, ending) in AS_MODEL.items():
        checkpoint = payloads.copy(tmp_path / "megatron", tmp_path / f"model {name}")
        make(checkpoint, canary)
        trees.append(_tree(tmp_path, checkpoint, f"run of {name}"))
        wanted.append(ending)
    for name, (make, ending) in OF_A_RUN.items():
        run = payloads.copy(tmp_path / "run", tmp_path / f"resumed {name}")
        (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
        make(run / "checkpoints", canary)
        trees.append({**_tree(tmp_path, tmp_path / "megatron", "run"), "run": {"dir": str(run)}})
        wanted.append(ending)
    ends = run_ranks(_watched_runs, 1, trees, str(canary), str(log))[0]
    assert not canary.exists()
    assert log.read_text().startswith("hostile.test")
    assert len(log.read_text().splitlines()) == 1, log.read_text()
    for end, ending, name in zip(ends, wanted, [*AS_MODEL, *OF_A_RUN], strict=True):
        assert ending in end, (name, end)
