"""Checkpoints written while training goes on; complete only once the tracker names them."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from dpop_base.checkpoint_names import TRACKER, iteration_name
from dpop_base.errors import UserError
from dpop_base.files import write_text
from megatron_dpop.checkpoints.checkpoint import CONTENT, run_state
from megatron_dpop.checkpoints.complete import saved_iterations
from megatron_dpop.checkpoints.digests import digests_here, named_digests
from megatron_dpop.checkpoints.hashed_writing import write_hashed
from megatron_dpop.checkpoints.intact import content_files, write_checksums
from megatron_dpop.engine.engine import Engine
from megatron_dpop.runtime.parent import die_with_parent


class Saver:
    """Saves a run's checkpoints and keeps the newest. Every rank calls every method, in the same order.

    Every method raises UserError on all ranks where one of them could not write; the checkpoint before stays the last
    one then.

    Each rank writes its share of weights and optimizer state from a process forked from it, which sees the values of
    that moment whatever training does next. One checkpoint at most is being written.
    """

    def __init__(
        self, engine: Engine, folder: Path, *, keep: int, asynchronous: bool, on_saved: Callable[[str], None]
    ) -> None:
        """`on_saved` is given the name of each complete checkpoint."""
        self.engine = engine
        self.folder = folder
        self.keep = keep
        self.asynchronous = asynchronous
        self.on_saved = on_saved
        self.newest = 0  # steps taken by the weights that were saved or loaded last
        self.best: int | None = None  # an iteration that stays however old it is
        self._writing = AsyncCallsQueue()
        self._target = folder  # what is being written
        self._digests = get_context("fork").SimpleQueue()  # of the files that this rank writes
        _collect_results_in_a_fork()

    def save(self, iteration: int) -> None:
        """Starts to save, or saves, once the checkpoint before is complete."""
        self.finish()
        self.newest = iteration
        self._target = target = self.folder / iteration_name(iteration)
        self._digests = get_context("fork").SimpleQueue()
        if dist.get_rank() == 0:
            _make_way(target)
            target.mkdir(parents=True)
        dist.barrier()
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        request = dist_checkpointing.save(
            run_state(self.engine, iteration),
            str(target),
            FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), replicas),
            async_sharded_save=True,
            async_strategy="mcore",
            content_metadata=CONTENT,
        )
        request.add_finalize_fn(partial(self._complete, iteration))
        if request.async_fn is not None:  # this rank has something to write
            request = request._replace(async_fn=partial(write_hashed, request.async_fn, self._digests))
        if not self.asynchronous:
            with self._explaining():
                request.execute_sync()
            return
        if request.async_fn is not None:
            request = request._replace(async_fn=partial(_in_a_fork, os.getpid(), request.async_fn))
        self._writing.schedule_async_request(request)

    def poll(self) -> None:
        """Completes the checkpoint that is being written, if all ranks have written their files."""
        with self._explaining():
            self._writing.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Waits until nothing is being written."""
        with self._explaining():
            self._writing.maybe_finalize_async_calls(blocking=True)

    def _complete(self, iteration: int) -> None:
        """Writes the checksums, moves the tracker on, then removes the oldest checkpoints."""
        mine = {} if self._digests.empty() else self._digests.get()
        by_rank: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine, by_rank)
        if by_rank is not None:
            digests = {name: value for found in by_rank for name, value in found.items()}
            rest = {name: path for name, path in content_files(self._target).items() if name not in digests}
            write_checksums(self._target, digests | named_digests(rest, digests_here))
            write_text(self.folder / TRACKER, str(iteration))
            complete = [saved for saved in saved_iterations(self.folder) if saved <= iteration]
            for old in complete[: -self.keep]:
                if old != self.best:
                    shutil.rmtree(self.folder / iteration_name(old))
        self.on_saved(iteration_name(iteration))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """A failure to write, which Megatron raises on all ranks and of which rank 0 alone knows the reasons."""
        try:
            yield
        except CheckpointException as error:
            reasons = [next((f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items()), "")]
            dist.broadcast_object_list(reasons, src=0)
            free_bytes = shutil.disk_usage(self.folder).free
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(self._target, ignore_errors=True)
            raise UserError(
                f"{self._target}: cannot be written ({reasons[0]}; {free_bytes / 2**20:.1f} MiB are free there); "
                "the checkpoint before it is whole: make room"
            ) from None


def _make_way(target: Path) -> None:
    """Removes what a run that was killed while saving has left, or an untrue checkpoint that it went back behind."""
    if target.is_symlink() or target.is_file():
        raise UserError(f"{target}: is no folder, and a checkpoint is to be written there; move it away")
    if target.exists():
        shutil.rmtree(target)


def _in_a_fork(rank: int, write: Callable[..., None], *arguments: Any) -> None:
    """A writer that outlives its rank, process `rank`, could write into a checkpoint of the run that goes on."""
    die_with_parent(rank)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    write(*arguments)


def _collect_results_in_a_fork() -> None:
    """Megatron's writers report through a manager process; it would start one by importing torch anew, and leave it
    behind where this rank is killed."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=get_context("fork"))
        manager.start(die_with_parent, (os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
