"""Runs a function on several gloo ranks, each in a process of its own, inside one pytest process."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any


def _rank(function: Callable[..., Any], rank: int, world: int, port: int, queue: Any, args: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", MEGATRON_DPOP_DEVICE="cpu",
    )  # fmt: skip
    os.setpgrp()
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        store = dist.TCPStore("127.0.0.1", port, world, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        result = function(*args)
        queue.put((rank, result, None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
        raise


def _start(function: Callable[..., Any], world_size: int, args: tuple) -> tuple[list[Any], Any, Any]:
    """The ranks' processes, the queue of their results, and the store at which they meet, which must outlive them."""
    import torch.distributed as dist

    # Importing torch and Megatron takes many seconds: one server imports, and each rank is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    queue = context.Queue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, store.port, queue, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes, queue, store


def kill_ranks_when(condition: Callable[[], bool], function: Callable[..., Any], world_size: int, *args: Any) -> None:
    """Starts `function(*args)` on every rank and sends all of them SIGKILL once `condition` holds."""
    processes, _, _store = _start(function, world_size, args)
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "the ranks never came to the point where they were to be killed"
        assert all(process.is_alive() for process in processes), "a rank ended before it was killed"
        time.sleep(0.005)
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)  # with the writers that a rank has started for a checkpoint
    for process in processes:
        process.join()


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Calls `function(*args)` on every rank with the CPU backend and gloo initialised; returns results by rank.

    `function` must be importable (defined at module level) and return something that pickles, not tensors that
    share memory. The first rank's traceback that fails is raised here.
    """
    processes, queue, _store = _start(function, world_size, args)
    results: list[Any] = [None] * world_size
    try:
        for _ in range(world_size):
            rank, result, error = queue.get(timeout=500)
            if error:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{error}")
            results[rank] = result
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return results


def leave_model_parallel() -> None:
    """Ends a run's process groups inside a rank, for the next run there.

    Megatron-Core only forgets its groups; each keeps gloo's threads, of which a test of thirty layouts would leave
    thousands.
    """
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.barrier()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
