"""The health monitor on real runs of a tiny model that has been fine-tuned on its chosen answers first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_all, train_here

pytestmark = pytest.mark.slow

STEPS = 18
EVERY = 2  # steps of a checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of DPO and DPOP from one fine-tuned model over the same pairs."""
    folder = tmp_path_factory.mktemp("health")
    write_model(folder / "model", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 24)
    sft = write_config(
        folder,
        folder / "model",
        optimizer={"lr": 3e-3},
        train={"steps": 50, "global_batch_pairs": 24},
        run={"dir": str(folder / "sft")},
    )
    sft["loss"] = {"name": "sft"}
    run_ranks(train_all, 1, [sft, _tree(folder, "dpo"), _tree(folder, "dpop")])
    return folder


def _tree(world: Path, loss: str, run: str | None = None, **logging: object) -> dict:
    tree = write_config(
        world,
        world / "sft" / "checkpoints",
        optimizer={"lr": 1e-3},
        train={"steps": STEPS, "global_batch_pairs": 8},
        checkpoint={"every": EVERY, "keep": STEPS},
        logging=logging,
        run={"dir": str(world / (run or loss))},
    )
    tree["loss"] = {"name": loss, "beta": 0.3} | ({"lambda": 50.0} if loss == "dpop" else {})
    return tree


def _sightings(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]


def _of_results(run: Path) -> list[dict]:
    """Speed is another run's own."""
    return [alert for alert in _sightings(run) if alert["rule"] != "throughput_drop"]


def test_dpo_is_named_and_dpop_is_not(world: Path) -> None:
    (seen,) = _of_results(world / "dpo")
    assert seen["rule"] == "chosen_below_reference"
    assert "loss.name dpop" in seen["what"]
    assert "chosen_below_reference" not in {seen["rule"] for seen in _sightings(world / "dpop")}
    assert _of_results(world / "sft") == []


def test_a_resumed_run_knows_what_an_uninterrupted_one_does(world: Path) -> None:
    """From a checkpoint before the finding, and from one after it, with another run's words in the file."""
    wanted = _of_results(world / "dpo")
    health = world / "dpo" / "health.jsonl"
    before = wanted[0]["step"] // EVERY * EVERY
    assert 0 < before < before + EVERY < STEPS
    for iteration in (before, before + EVERY):
        (world / "dpo" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        with health.open("a") as file:
            file.write('{"step": 13, "rule": "from a step that was lost"')
        run_ranks(train_here, 1, _tree(world, "dpo"))
        assert _of_results(world / "dpo") == wanted


def stopped_here(tree: dict) -> str:
    from megatron_dpop.runtime.stop import UnhealthyError

    with pytest.raises(UnhealthyError) as raised:
        train_here(tree)
    leave_model_parallel()
    return str(raised.value)


def test_stops_all_ranks_after_one_step_and_goes_on_when_started_again(world: Path) -> None:
    tree = _tree(world, "dpo", "stopped", stop_on="chosen_below_reference")
    one, other = run_ranks(stopped_here, 2, tree)
    assert one == other
    (seen,) = _of_results(world / "stopped")
    done = seen["step"] + 2  # ranks learn of it in the next step's sum
    assert one.startswith(f"step {seen['step']}: Chosen answers fall below the reference")
    assert f"Stopped after step {done} of {STEPS}, saved as iter_{done:07d}" in one
    assert (world / "stopped" / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(done)
    metrics = run_ranks(train_here, 2, tree)[0]
    assert [line["step"] for line in metrics] == list(range(STEPS))
    assert _of_results(world / "stopped") == [seen]


def test_a_reference_of_another_precision_is_seen_at_step_0(world: Path) -> None:
    """What `reference.cache` holds is not what this run would compute: it goes on with a warning, and is told why."""
    trees = []
    for precision in ("fp32", "bf16"):
        tree = _tree(world, "dpop", f"drift_{precision}")
        tree |= {"precision": {"params": precision}, "reference": {"cache": str(world / "cache")}}
        trees.append({**tree, "model": {"path": str(world / "model")}, "train": {"steps": 1, "global_batch_pairs": 8}})
    first, second = run_ranks(train_all, 1, trees)[0]
    assert first[0]["reference/drift"] == 0
    assert second[0]["reference/drift"] > 0.01
    seen = [[alert["rule"] for alert in _sightings(Path(tree["run"]["dir"]))] for tree in trees]
    assert seen == [[], ["reference_drift"]]


def test_the_command_ends_with_a_code_of_its_own_and_one_line(world: Path) -> None:
    (world / "config.yaml").write_text(yaml.safe_dump(_tree(world, "dpo", "command", stop_on=["any"])))
    command = [sys.executable, "-m", "megatron_dpop", "train", str(world / "config.yaml"), "--parallel.tensor", "2"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("megatron-dpop: ")]
    assert line.startswith("megatron-dpop: unhealthy: step ")
    assert line.endswith("by logging.stop_on; the same command goes on from there")
    beat = json.loads((world / "command" / "heartbeat.json").read_text())
    assert beat["state"] == "unhealthy"
    assert beat["error"] in line
