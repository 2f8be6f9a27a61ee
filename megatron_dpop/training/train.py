"""A run from its config to its exported model: build, begin, train, export."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_dpop.config import Config
from megatron_dpop.runtime import processes
from megatron_dpop.runtime.peers import watching_peers
from megatron_dpop.runtime.stop import StoppedError, StopRequest, UnhealthyError
from megatron_dpop.tracking.outcome import outcome
from megatron_dpop.training.export import export_model
from megatron_dpop.training.inputs import Inputs
from megatron_dpop.training.loop import Loop
from megatron_dpop.training.reference_cache import step_data
from megatron_dpop.training.resuming import begin, keep_identity, load_policy
from megatron_dpop.training.run import Run, build_run


def train(config: Config, inputs: Inputs, device: torch.device, stop: StopRequest, *, quiet: bool = False) -> None:
    """Trains, or goes on where a killed run stopped; every rank calls it. Raises StoppedError once `stop` was asked."""
    run = build_run(config, inputs, device, stop, quiet=quiet)
    with record_outcome(run, lambda: f"trained {run.steps_taken} steps"):
        with watching_peers():
            train_steps(run)
        rank = dist.get_rank()
        processes.shut_down()
        if rank == 0 and config.checkpoint.export_hf:  # the other ranks have left, and their memory is free
            export_model(run)
    if not run.console.silent:
        for line in outcome(run.folder):
            run.console.insist(line)


def compute_references(
    config: Config, inputs: Inputs, device: torch.device, stop: StopRequest, *, quiet: bool = False
) -> None:
    """Computes and caches reference log-probabilities only; every rank calls it. Raises StoppedError as `train`."""
    run = build_run(config, inputs, device, stop, quiet=quiet)
    with record_outcome(run, lambda: "computed the reference"):
        with watching_peers():
            keep_identity(run)
            step_data(run)
        processes.shut_down()


def train_steps(run: Run) -> None:
    """Does everything of a run but its export."""
    wandb = begin(run)
    train, validation = step_data(run)
    torch.cuda.empty_cache()  # a forward-only pass keeps blocks of other sizes than training needs
    first_step = load_policy(run)
    loop = Loop(run, wandb)
    run.steps_taken = loop.run(train, validation, first_step=first_step)
    run.best_iteration = loop.best.iteration if loop.best is not None else None


@contextmanager
def record_outcome(run: Run, done: Callable[[], str]) -> Iterator[None]:
    """Records in the heartbeat how the run ended, and says its last line; `done` says what a whole run has done."""
    try:
        yield
    except StoppedError as stopped:
        run.heartbeat.beat("stopped")
        run.console.insist(f"stopped {stopped}; the same command goes on from there")
        if dist.is_initialized():
            dist.barrier()
            processes.shut_down()
        raise
    except UnhealthyError as unhealthy:
        run.heartbeat.beat("unhealthy", error=str(unhealthy))
        dist.barrier()
        processes.shut_down()
        raise
    except (Exception, CheckpointException) as error:
        run.heartbeat.beat("failed", error=str(error))
        raise
    run.heartbeat.beat("finished")
    run.console.insist(f"finished: {done()}; see {run.folder.path}")
