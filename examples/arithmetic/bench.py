"""Runs trials that are not in the results yet, each in a process of its own, and keeps what they measured."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from examples.arithmetic.results import Line, Results
from examples.arithmetic.stage import Stage
from examples.arithmetic.training import measure_start, run_trial
from examples.arithmetic.trials import Trial
from megatron_dpop.runtime.launch import ALLOCATOR_SETTINGS


def run_trials(trials: Sequence[Trial], stage: Stage, results: Results, *, workers: int) -> None:
    """Stopped and called again, it goes on with what is missing. Trials that end at another's margin come last."""
    # Importing torch and Megatron takes seconds: one server does it, and each trial is a fork of that.
    os.environ |= {"OMP_NUM_THREADS": "1", "MEGATRON_DPOP_DEVICE": "cpu", **ALLOCATOR_SETTINGS}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["examples.arithmetic.preload"])
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        if results.lacks("start", 0):
            results.add(pool.submit(measure_start, stage).result())
        for waits in (False, True):
            running: set[Future[Line]] = set()
            for one in trials:
                # Looked up late: the same trial may be one of another command's, which runs beside this.
                if (one.ends_at_margin_of is not None) == waits and results.lacks(one.name, one.problems):
                    other = one.ends_at_margin_of
                    margin = None if other is None else results.by_name()[other.name]["margin"]
                    running.add(pool.submit(run_trial, one, stage, margin))
                    if len(running) == workers:
                        running = keep_finished(running, trials, results)
            while running:
                running = keep_finished(running, trials, results)


def keep_finished(running: set[Future[Line]], trials: Sequence[Trial], results: Results) -> set[Future[Line]]:
    """Waits for one of them at least; returns the others."""
    done, others = wait(running, return_when=FIRST_COMPLETED)
    for line in (one.result() for one in done):
        results.add(line)
        left = sum(results.lacks(one.name, one.problems) for one in trials)
        print(
            f"{len(trials) - left}/{len(trials)} {line['name']}: accuracy {line['accuracy']:.3f}, chosen minus "
            f"reference {line['chosen_minus_reference']:+.1f}, margin {line['margin']:.1f}, KL {line['kl']:.3f}, "
            f"{line['cpu_seconds']:.0f} s of a core",
            flush=True,
        )
    return others


def lay_out(root: Path) -> Stage:
    stage = Stage(root)
    stage.prepare()
    return stage
