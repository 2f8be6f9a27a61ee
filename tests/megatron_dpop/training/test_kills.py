"""Killed while it tokenises, converts, computes its reference, saves or exports: the same command ends the same."""

from pathlib import Path

import pytest
import torch

from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.training.kills import counted_in, difference, kill, run_in
from tests.tiny import write_config, write_model, write_pairs
from tests.training import Outcome

pytestmark = pytest.mark.slow

# What a run is doing, by the path that it is about to change.
PHASES = {
    "tokenising": ".arrow",
    "converting": "/initial/",
    "reference": "/reference/",
    "saving": "/checkpoints/iter_",
    "exporting": "/hf/",
}


def tree_of(folder: Path, run: str, *, model: str = "model", **sections: object) -> dict:
    return write_config(
        folder,
        folder / model,
        precision={"params": "bf16"},
        data={"validation": str(folder / "pairs.jsonl")},
        train={"steps": 4},
        checkpoint={"every": 2, "keep": 1, "export_hf": True},
        run={"dir": str(folder / run)},
        **sections,
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


KILLS, PARTS = 20, 5  # of one run each, and so many tests
MIXTURE = "qwen3-moe-dense-between"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, Outcome]:
    """Where a mixture's runs are, how many operations one has, and one that was left alone, in `whole`."""
    folder = save_chat_models([MIXTURE], tmp_path_factory.mktemp("killed_experts"), torch.bfloat16)
    write_pairs(folder / "pairs.jsonl", 12)
    operations = run_ranks(counted_in, 1, folder / "counted_cache", tree_of(folder, "counted", model=MIXTURE))[0]
    (whole,) = run_ranks(run_in, 1, folder / "whole_cache", tree_of(folder, "whole", model=MIXTURE))[0]
    return folder, len(operations), whole


@pytest.mark.parametrize("part", in_ci(0, of=range(PARTS)))
def test_a_run_of_experts_killed_twenty_times_ends_the_same(part: int, experts: tuple[Path, int, Outcome]) -> None:
    """Twenty runs, each killed at another of its operations: its routes, too, are those of the run left alone."""
    folder, operations, whole = experts
    assert whole.metrics[0]["moe/route_agreement"] == 1.0
    assert whole.metrics[3]["moe/route_agreement"] < 1.0
    for number in range(part, KILLS, PARTS):
        cache, tree = folder / f"cache_{number}", tree_of(folder, f"killed_{number}", model=MIXTURE)
        assert kill(cache, tree, (2 * number + 1) * operations // (2 * KILLS)), number
        assert difference(cache, tree, whole, folder / "whole") is None, number


RANK_KILLS = 4


def test_a_run_of_which_one_expert_rank_is_killed_ends_the_same(tmp_path: Path) -> None:
    """Two ranks hold half of the experts each. Either dies in turn, wherever the other is then."""
    sections: dict = {"model": MIXTURE, "parallel": {"expert": 2}}
    save_chat_models([MIXTURE], tmp_path, torch.bfloat16)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    operations = run_ranks(counted_in, 2, tmp_path / "counted_cache", tree_of(tmp_path, "counted", **sections))[0]
    (whole,) = run_ranks(run_in, 2, tmp_path / "whole_cache", tree_of(tmp_path, "whole", **sections))[0]
    assert whole.metrics[0]["moe/route_agreement"] == 1.0
    for number in range(RANK_KILLS):
        cache, tree = tmp_path / f"cache_{number}", tree_of(tmp_path, f"killed_{number}", **sections)
        at = (2 * number + 1) * len(operations) // (2 * RANK_KILLS)
        assert kill(cache, tree, at, rank=number % 2, world_size=2), number
        assert difference(cache, tree, whole, tmp_path / "whole", world_size=2) is None, number
