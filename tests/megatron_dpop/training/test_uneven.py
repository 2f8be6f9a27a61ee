"""Data-parallel ranks and micro-batches with different numbers of pairs make the update of one rank."""

from pathlib import Path

import numpy as np
import pytest

from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import model_and_pairs, write_config
from tests.training import train_here

STEPS = 2
Result = tuple[list[list[int]], dict[str, np.ndarray], list[float]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_pairs(tmp_path_factory.mktemp("uneven"), 11, num_hidden_layers=2)


def _trees(world: Path, ranks: int) -> list[dict]:
    return [
        write_config(
            world,
            world / "model",
            data={"row_tokens": 64},
            # Adam's first steps have the gradient's sign where it is far above eps: a large eps shows its size too.
            optimizer={"eps": 1e-2, "lr": 1e-2},
            train={"steps": STEPS, "global_batch_pairs": pairs},
            run={"dir": str(world / f"run_{pairs}_{ranks}")},
        )
        for pairs in (7, 3)
    ]


def test_a_rank_that_holds_padding_alone_keeps_step_with_the_others(world: Path) -> None:
    """A pair of eight tokens in a row of 64: of two context-parallel ranks one sees no token of it."""
    (world / "short.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n')
    runs = []
    for ranks in (1, 2):
        tree = write_config(
            world,
            world / "model",
            parallel={"context": ranks},
            data={"train": str(world / "short.jsonl"), "row_tokens": 64},
            train={"steps": STEPS, "global_batch_pairs": 1},
            run={"dir": str(world / f"short_{ranks}")},
        )
        runs.append(run_ranks(train_here, ranks, tree)[0])
    for alone, shared in zip(*runs, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name


def updated_here(trees: list[dict]) -> list[Result]:
    return [_updated(tree) for tree in trees]


def _updated(tree: dict) -> Result:
    """Pairs in each row of each step, the trained weights, and the losses."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.config.schema import ParallelConfig
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(ParallelConfig(), seed=0)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.metrics import StepMetrics
    from megatron_dpop.training.reference_cache import step_data
    from megatron_dpop.training.reruns import Reruns
    from megatron_dpop.training.resuming import begin, load_policy
    from megatron_dpop.training.run import build_run
    from megatron_dpop.training.step import train_step

    run = build_run(config, read_inputs(config, progress=False), device)
    begin(run)
    data, _ = step_data(run)
    load_policy(run)
    metrics = StepMetrics(run.engine, run.inputs.loss, data.source.dataset)
    losses = [train_step(run.engine, data, metrics, Reruns(), step)["loss"] for step in range(STEPS)]
    rows = [[len(row) for row in run.train.plan(step).rows] for step in range(STEPS)]
    run.engine.finish_parameter_gather()
    weights = {name: value.detach().numpy().copy() for name, value in run.engine.modules[0].named_parameters()}
    leave_model_parallel()
    return rows, weights, losses


@pytest.mark.slow
def test_update_does_not_depend_on_the_data_parallel_size(world: Path) -> None:
    by_ranks = {ranks: run_ranks(updated_here, ranks, _trees(world, ranks)) for ranks in (1, 2, 4)}
    for at in range(2):
        _, expected, expected_losses = by_ranks[1][0][at]
        for ranks in (2, 4):
            results = [result[at] for result in by_ranks[ranks]]
            assert any(len(set(rows)) > 1 for rows in results[0][0]), "the rows hold equally many pairs"
            for _, weights, losses in results:
                assert losses == pytest.approx(expected_losses, rel=1e-5)
                for name, wanted in expected.items():
                    # Each step moves a weight by up to the learning rate, 1e-2.
                    np.testing.assert_allclose(weights[name], wanted, rtol=0, atol=1e-6, err_msg=f"{ranks} {name}")
    without_pairs = [rows for rows, _, _ in (result[1] for result in by_ranks[4]) if 0 in np.ravel(rows)]
    assert without_pairs, "no rank had to train on a row without pairs"
