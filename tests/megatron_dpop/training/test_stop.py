"""A signal to one rank makes all of them save after one and the same step, and changes nothing of what follows."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    write_model(folder / "model", dtype="bfloat16", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 30)
    return folder


def _tree(world: Path, run: str) -> dict:
    return write_config(
        world,
        world / "model",
        train={"steps": STEPS},
        checkpoint={"every": 100},
        run={"dir": str(world / run)},
    )


def stopped_here(tree: dict, rank: int, lines: int) -> str:
    """Trains; one rank gets SIGUSR1 once the run has so many lines of metrics. Returns why the run ended."""
    import torch.distributed as dist

    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes
    from megatron_dpop.runtime.stop import StoppedError, StopRequest

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.run import build_run
    from megatron_dpop.training.train import train_steps

    stop = StopRequest()
    stop.listen()
    run = build_run(config, read_inputs(config, progress=False), device, stop)
    if dist.get_rank() == rank:
        threading.Thread(target=_signal_at, args=(Path(config.run.dir), lines), daemon=True).start()
    reason = "nothing"
    try:
        train_steps(run)
    except StoppedError as stopped:
        reason = str(stopped)
    leave_model_parallel()
    return reason


def _signal_at(run: Path, lines: int) -> None:
    metrics = run / "metrics.jsonl"
    while lines and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR1)


def _comparable(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in metrics]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_one_step(world: Path, rank: int) -> None:
    uninterrupted = run_ranks(train_here, 2, _tree(world, f"whole_{rank}"))[0]
    tree = _tree(world, f"stopped_{rank}")
    one, other = run_ranks(stopped_here, 2, tree, rank, 2)
    assert one == other
    step = int(one.split()[2])
    assert one == f"after step {step} of {STEPS}, saved as iter_{step:07d}"
    assert 2 <= step < STEPS
    run = Path(tree["run"]["dir"])
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(step)
    beat = json.loads((run / "heartbeat.json").read_text())
    assert (beat["saved"], beat["step"], beat["steps"]) == (f"iter_{step:07d}", step, STEPS)
    assert _comparable(run_ranks(train_here, 2, tree)[0]) == _comparable(uninterrupted)


def test_a_stop_in_the_reference_pass_keeps_what_was_computed(world: Path) -> None:
    from megatron_dpop.training.reference import read_reference

    tree = _tree(world, "reference")
    reasons = run_ranks(stopped_here, 2, tree, 1, 0)
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("in the reference pass (train), whose ")
    cache = Path(tree["run"]["dir"]) / "reference" / "train.safetensors"
    kept = read_reference(cache).logps
    known = ~np.isnan(kept[:, 0])
    assert 0 < known.sum() < len(known)
    resumed = run_ranks(train_here, 2, tree)[0]
    whole = read_reference(cache).logps
    assert np.array_equal(whole[known], kept[known])
    assert not np.isnan(whole[:, 0]).all()
    assert _comparable(resumed) == _comparable(run_ranks(train_here, 2, _tree(world, "reference_whole"))[0])
