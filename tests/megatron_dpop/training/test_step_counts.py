"""What one training step does, in counts that no machine changes: a slower step shows here before any clock.

Where a change lowers a count, lower it here too. Where it raises one, it must be worth it.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs

LAYERS = 4
PAIRS = 12


@dataclass(frozen=True)
class Counts:
    """Of one training step on one rank, after a first one that warmed up."""

    flops: int  # of matrix products, as torch counts them
    model_flops: float  # as `perf/model_tflops_per_device` counts them
    collectives: dict[str, int]
    waits: dict[str, int]  # of the host for the device
    allocations: int
    allocated_bytes: int


def count_step(tree: dict) -> Counts:
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)
    from torch.utils.flop_counter import FlopCounterMode

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.metrics import StepMetrics
    from megatron_dpop.training.step import train_step
    from megatron_dpop.training.train import Run
    from tests.allocations import AllocationCounter
    from tests.collectives import CollectiveCounter
    from tests.host_waits import HostWaitCounter

    run = Run(config, read_inputs(config, progress=False), device)
    run.start()
    data, _ = run.step_data()
    run.load_policy()
    metrics = StepMetrics(run.engine, run.inputs.loss, data.source.dataset)
    train_step(run.engine, data, metrics, 0)
    with CollectiveCounter() as collectives, HostWaitCounter() as waits:
        values = train_step(run.engine, data, metrics, 1)
    with AllocationCounter() as allocations:
        train_step(run.engine, data, metrics, 1)
    with FlopCounterMode(display=False) as flops:
        train_step(run.engine, data, metrics, 1)
    leave_model_parallel()
    products = sum(count for operation, count in flops.get_flop_counts()["Global"].items() if "mm" in str(operation))
    return Counts(
        flops=products,
        model_flops=values["perf/model_tflops_per_device"] * 1e12 * values["perf/step_seconds"],
        collectives=dict(collectives.calls),
        waits=dict(waits.counts),
        allocations=allocations.made,
        allocated_bytes=allocations.made_bytes,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counts")
    write_model(folder / "model", dtype="bfloat16", num_hidden_layers=LAYERS)
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return folder


def _tree(world: Path, run: str, **sections: object) -> dict:
    return write_config(
        world,
        world / "model",
        precision={"params": "bf16"},
        train={"steps": 3, "global_batch_pairs": PAIRS},
        run={"dir": str(world / run)},
        **{"data": {"row_tokens": 512}, **sections},
    )


@pytest.fixture(scope="module")
def alone(world: Path) -> Counts:
    return run_ranks(count_step, 1, _tree(world, "alone"))[0]


@pytest.fixture(scope="module")
def tensor(world: Path) -> list[Counts]:
    return run_ranks(count_step, 2, _tree(world, "tensor", parallel={"tensor": 2}))


def test_print(alone, tensor, world):
    print(alone)
    print(tensor[0])
    print(run_ranks(count_step, 1, _tree(world, "unshared", data={"row_tokens": 512, "share_prefix": False}))[0])
