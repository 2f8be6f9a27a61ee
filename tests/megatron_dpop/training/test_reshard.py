"""Checkpoints move between layouts, and survive whatever moment a run is killed at."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import kill_ranks_when, run_ranks
from tests.exhaustive import in_ci
from tests.tiny import model_and_pairs, write_config
from tests.training import train_here

STEPS, SAVED = 6, 3
RELATIVE = 1e-5
# Sections beyond the defaults, and ranks. Several data-parallel ranks share the optimizer's state.
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "one": ({}, 1),
    "one_plain": ({"optimizer": {"distributed": False}}, 1),
    "tensor": ({"parallel": {"tensor": 2}}, 2),
    "pipeline": ({"parallel": {"pipeline": 2}}, 2),
    "interleaved": ({"parallel": {"pipeline": 2, "virtual_pipeline": 2}}, 2),
    "context": ({"parallel": {"context": 2}}, 2),
    "data": ({}, 2),
    "all": ({"parallel": {"tensor": 2, "pipeline": 2, "context": 2}}, 8),
}
KILLS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_pairs(tmp_path_factory.mktemp("reshard"), 20)


def _tree(world: Path, run: str, **sections: Any) -> dict[str, Any]:
    options = {
        "optimizer": {"lr": 1e-5},
        "train": {"steps": STEPS},
        "checkpoint": {"every": SAVED, "keep": 9},
        "run": {"dir": str(world / run)},
    }
    merged = {name: {**options.get(name, {}), **sections.get(name, {})} for name in {*options, *sections}}
    return write_config(world, world / "model", **merged)


@pytest.mark.slow
@pytest.mark.parametrize("saved_at", in_ci("tensor", of=["tensor", "interleaved", "data"]))
def test_a_run_goes_on_at_every_other_layout(world: Path, saved_at: str) -> None:
    sections, ranks = LAYOUTS[saved_at]
    tree = _tree(world, saved_at, **sections)
    expected = run_ranks(train_here, ranks, tree)[0]
    for name, (others, other_ranks) in LAYOUTS.items():
        if name == "one_plain":
            continue  # another optimizer, whose state is stored in another form
        moved = _tree(world, f"{saved_at}_to_{name}", **others)
        run = Path(moved["run"]["dir"])
        shutil.copytree(tree["run"]["dir"], run)
        (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
        found = run_ranks(train_here, other_ranks, moved)[0]
        assert [line["step"] for line in found] == list(range(STEPS))
        for line, wanted in zip(found[SAVED:], expected[SAVED:], strict=True):
            for metric in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
                assert line[metric] == pytest.approx(wanted[metric], rel=RELATIVE), (name, line["step"], metric)


@pytest.mark.slow
@pytest.mark.parametrize("layout", in_ci("one_plain", of=["one_plain", "data"]))
def test_killed_at_random_moments_a_run_always_goes_on(world: Path, layout: str) -> None:
    """A checkpoint after every step, so that a kill mostly comes while one is being written."""
    sections, ranks = LAYOUTS[layout]
    options = {**sections, "train": {"steps": 4 * KILLS}, "checkpoint": {"every": 1, "keep": 2}}
    whole = run_ranks(train_here, ranks, _tree(world, f"whole_{layout}", **options))[0]
    tree = _tree(world, f"killed_{layout}", **options)
    draw = random.Random(0)
    for _ in range(KILLS // 2):
        kill_ranks_when(_some_time_after_a_save(tree, draw), train_here, ranks, tree)
    found = run_ranks(train_here, ranks, tree)[0]
    assert len(found) == len(whole)
    for line, wanted in zip(found, whole, strict=True):
        assert {name: value for name, value in line.items() if not name.startswith("perf/")} == {
            name: value for name, value in wanted.items() if not name.startswith("perf/")
        }


def _some_time_after_a_save(tree: dict[str, Any], draw: random.Random) -> Any:
    """True up to 0.3 seconds after the run has completed a checkpoint since now: mostly, while it writes the next."""
    tracker = Path(tree["run"]["dir"], "checkpoints", "latest_checkpointed_iteration.txt")

    def saved() -> str:
        return tracker.read_text() if tracker.exists() else ""

    first, delay_seconds = saved(), draw.uniform(0, 0.3)
    completed: list[float] = []

    def is_due() -> bool:
        if not completed and saved() != first:
            completed.append(time.monotonic())
        return bool(completed) and time.monotonic() - completed[0] >= delay_seconds

    return is_due
