"""Runs contenders in processes of their own that take their steps in turn: step 1 of each, then step 2 of each.

What slows the machine for a while then slows all of them. A contender that waits for its turn uses no processor.
"""

import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.contenders import TRAINERS, Contender, ContenderRun, Task


def run_in_turns(task: Task, contenders: list[Contender]) -> dict[str, ContenderRun]:
    """Each contender's outcome. Setting up is done one after the other, before the first step of any."""
    # Read when a process starts; both trainers get what `megatron-dpop train` gives its ranks.
    from megatron_dpop.runtime.launch import ALLOCATOR_SETTINGS

    os.environ.update(ALLOCATOR_SETTINGS, OMP_NUM_THREADS=str(task.threads))
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    try:
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_contend, args=(task, contender, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            pipes[contender.name] = ours
            _expect(ours, contender.name)
        for _ in range(task.steps):
            for name, pipe in pipes.items():
                pipe.send("go")
                _expect(pipe, name)
        outcomes = {}
        for name, pipe in pipes.items():
            pipe.send("go")
            outcomes[name] = _expect(pipe, name)
        return outcomes
    finally:
        for process in processes:
            process.join(60)
            if process.is_alive():
                process.kill()


def _expect(pipe: Any, name: str) -> Any:
    try:
        kind, value = pipe.recv()
    except EOFError:
        raise SystemExit(f"benchmark: {name} ended without a result") from None
    if kind == "failed":
        raise SystemExit(f"benchmark: {name} failed:\n{value}")
    return value


def _contend(task: Task, contender: Contender, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(task.threads)

    def turn() -> None:
        pipe.send(("ready", None))
        pipe.recv()

    try:
        outcome = TRAINERS[contender.trainer](task, contender, turn)
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        raise
    pipe.send(("outcome", outcome))
