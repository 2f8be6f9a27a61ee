"""Trains inside a process that is already a rank (see `tests/distributed.py`)."""

import json
from pathlib import Path

from tests.distributed import leave_model_parallel


def train_here(tree: dict) -> list[dict]:
    """Runs a config in this rank, as `megatron-dpop train` does, and returns its metrics."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=config.train.seed)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.train import Run

    run = Run(config, read_inputs(config, progress=False), device)
    run.train_steps()
    leave_model_parallel()
    return [json.loads(line) for line in Path(config.run.dir, "metrics.jsonl").read_text().splitlines()]


def train_all(trees: list[dict]) -> list[list[dict]]:
    return [train_here(tree) for tree in trees]
