"""Killed while it tokenises, converts, computes its reference, saves or exports: the same command ends the same."""

from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.megatron_dpop.training.kills import counted_in, difference, kill, run_in
from tests.tiny import write_config, write_model, write_pairs

pytestmark = pytest.mark.slow

# What a run is doing, by the path that it is about to change.
PHASES = {
    "tokenising": ".arrow",
    "converting": "/initial/",
    "reference": "/reference/",
    "saving": "/checkpoints/iter_",
    "exporting": "/hf/",
}


def tree_of(folder: Path, run: str) -> dict:
    return write_config(
        folder,
        folder / "model",
        precision={"params": "bf16"},
        data={"validation": str(folder / "pairs.jsonl")},
        train={"steps": 4},
        checkpoint={"every": 2, "keep": 1, "export_hf": True},
        run={"dir": str(folder / run)},
    )


def test_a_run_killed_at_any_operation_ends_the_same(tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="bfloat16", num_hidden_layers=2)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    operations = run_ranks(counted_in, 1, tmp_path / "counted_cache", tree_of(tmp_path, "counted"))[0]
    (whole,) = run_ranks(run_in, 1, tmp_path / "whole_cache", tree_of(tmp_path, "whole"))[0]
    for phase, mark in PHASES.items():
        points = [at for at, operation in enumerate(operations) if mark in operation]
        at = points[len(points) // 2]
        cache, tree = tmp_path / f"cache_{phase}", tree_of(tmp_path, phase)
        assert kill(cache, tree, at), phase
        assert difference(cache, tree, whole, tmp_path / "whole") is None, f"{phase}: {operations[at]}"
