"""Runs trials that are not in the results yet, each in a process of its own, and keeps what they measured."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from examples.arithmetic.results import Results
from examples.arithmetic.stage import Stage
from examples.arithmetic.training import measure_start, run_trial
from examples.arithmetic.trials import Trial
from megatron_dpop.runtime.launch import ALLOCATOR_SETTINGS


def run_trials(trials: Sequence[Trial], stage: Stage, results: Results, *, workers: int) -> None:
    """Stopped and called again, it goes on with what is missing. Trials that end at another's margin come last."""
    names = [one.name for one in trials]
    # Importing torch and Megatron takes seconds: one server does it, and each trial is a fork of that.
    os.environ |= {"OMP_NUM_THREADS": "1", "MEGATRON_DPOP_DEVICE": "cpu", **ALLOCATOR_SETTINGS}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["examples.arithmetic.preload"])
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        if "start" not in results.by_name():
            results.add(pool.submit(measure_start, stage).result())
        for waits in (False, True):
            known = results.by_name()
            some = [one for one in trials if (one.ends_at_margin_of is not None) == waits and one.name not in known]
            running = {}
            for one in some:
                other = one.ends_at_margin_of
                margin = None if other is None else known[other.name]["margin"]
                running[pool.submit(run_trial, one, stage, margin)] = one
            for done in as_completed(running):
                line = done.result()
                results.add(line)
                print(
                    f"{len(set(names) & set(results.by_name()))}/{len(names)} {line['name']}: "
                    f"accuracy {line['accuracy']:.3f}, chosen minus reference {line['chosen_minus_reference']:+.1f}, "
                    f"margin {line['margin']:.1f}, KL {line['kl']:.3f}, {line['seconds']:.0f} s",
                    flush=True,
                )


def lay_out(root: Path, uv: str) -> Stage:
    stage = Stage(root)
    stage.prepare(uv)
    return stage
