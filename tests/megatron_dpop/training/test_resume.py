"""A killed run goes on exactly where it was: from the last checkpoint on, its metrics are an uninterrupted run's."""

import json
from pathlib import Path

import pytest

from tests.distributed import kill_ranks_when, run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

STEPS = 8
EVERY = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_model(folder / "model", dtype="bfloat16", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 20)
    write_pairs(folder / "held_out.jsonl", 5, seed=1)
    return folder


def _tree(world: Path, run: str, **parallel: object) -> dict:
    return write_config(
        world,
        world / "model",
        precision={"params": "bf16"},
        parallel=parallel,
        data={"validation": str(world / "held_out.jsonl")},
        optimizer={"warmup_steps": 2, "schedule": "cosine"},
        train={"steps": STEPS, "validate_every": 2},
        checkpoint={"every": EVERY, "keep": 2},
        run={"dir": str(world / run)},
    )


def _comparable(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in metrics]


def _lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "ranks"), [({}, 1), ({"tensor": 2}, 2)], ids=["tp1", "tp2"])
def test_a_killed_run_repeats_an_uninterrupted_one(world: Path, layout: dict, ranks: int) -> None:
    uninterrupted = run_ranks(train_here, ranks, _tree(world, f"whole_{ranks}", **layout))[0]
    assert [line["step"] for line in uninterrupted] == list(range(STEPS + 1))
    tree = _tree(world, f"killed_{ranks}", **layout)
    run = Path(tree["run"]["dir"])
    # Before any checkpoint, just after one, and between two; the second and third go on from a resumed run.
    for lines in (2, 4, 6):
        kill_ranks_when(lambda lines=lines: _lines(run) >= lines, train_here, ranks, tree)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # the line that a kill cut short
    resumed = run_ranks(train_here, ranks, tree)[0]
    assert _comparable(resumed) == _comparable(uninterrupted)
    assert sorted(path.name for path in (run / "checkpoints").glob("iter_*")) == ["iter_0000006", "iter_0000008"]


def test_a_finished_run_changes_nothing_when_started_again(world: Path) -> None:
    tree = _tree(world, "again")
    first = run_ranks(train_here, 1, tree)[0]
    tracker = Path(tree["run"]["dir"], "checkpoints", "latest_checkpointed_iteration.txt")
    assert tracker.read_text() == str(STEPS)
    assert _comparable(run_ranks(train_here, 1, tree)[0]) == _comparable(first)


@pytest.mark.slow
def test_the_weights_that_were_saved_are_those_that_were_trained(world: Path) -> None:
    """The same data after a save and a load must give the next step's loss, at another layout too."""
    tree = _tree(world, "moved")
    whole = run_ranks(train_here, 1, tree)[0]
    run = Path(tree["run"]["dir"])
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("6")
    moved = run_ranks(train_here, 2, {**tree, "parallel": {"tensor": 2}})[0]
    assert json.dumps(moved[:6]) == json.dumps(whole[:6])
    for line, wanted in zip(moved[6:8], whole[6:8], strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=0.05)
        assert line["logps/chosen"] == pytest.approx(wanted["logps/chosen"], rel=5e-3)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_whole_optimizer_goes_on_as_a_sharded_one_does(world: Path, precision: str) -> None:
    tree = _tree(world, f"whole_optimizer_{precision}")
    tree |= {"precision": {"params": precision}, "optimizer": {**tree["optimizer"], "distributed": False}}
    whole = run_ranks(train_here, 1, tree)[0]
    (Path(tree["run"]["dir"]) / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("6")
    assert _comparable(run_ranks(train_here, 1, tree)[0]) == _comparable(whole)
