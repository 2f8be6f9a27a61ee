"""Trains inside a process that is already a rank (see `tests/distributed.py`)."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.distributed import leave_model_parallel


def train_here(tree: dict) -> list[dict]:
    """Runs a config in this rank, as `megatron-dpop train` does, and returns its metrics."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=config.train.seed)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.run import build_run
    from megatron_dpop.training.train import train_steps

    run = build_run(config, read_inputs(config, progress=False), device)
    train_steps(run)
    leave_model_parallel()
    return [json.loads(line) for line in Path(config.run.dir, "metrics.jsonl").read_text().splitlines()]


def train_all(trees: list[dict]) -> list[list[dict]]:
    return [train_here(tree) for tree in trees]


@dataclass
class Outcome:
    """What a whole run, its export included, left and said; or why it ended, where the user can fix that."""

    metrics: list[dict]
    said: str
    error: str | None = None

    def comparable(self) -> list[dict]:
        """Without what a clock measured."""
        return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in self.metrics]


def run_here(*steps: dict | Callable[[], object]) -> list[Outcome]:
    """Runs configs one after another in this rank, as `megatron-dpop train` does; between them it does what is asked.

    Each step is a config, or something that rank 0 is to call.
    """
    import torch.distributed as dist

    outcomes = []
    for step in steps:
        if isinstance(step, dict):
            outcomes.append(_outcome(step))
        elif dist.get_rank() == 0:
            step()
        dist.barrier()
    return outcomes


def _outcome(tree: dict) -> Outcome:
    import torch.distributed as dist

    from dpop_base.errors import UserError
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=config.train.seed)

    from megatron_dpop.training.export import export_model
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.run import build_run
    from megatron_dpop.training.train import train_steps

    said, error = io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            run = build_run(config, read_inputs(config, progress=False), device)
            train_steps(run)
            if dist.get_rank() == 0 and config.checkpoint.export_hf:
                export_model(run)
        except UserError as problem:
            error = str(problem)
    leave_model_parallel()
    metrics = Path(config.run.dir, "metrics.jsonl")
    lines = metrics.read_text().splitlines() if metrics.exists() and error is None else []
    return Outcome([json.loads(line) for line in lines], said.getvalue(), error)
