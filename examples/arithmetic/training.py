"""A trial from start to measurements, in one process: the trainer's own run, but for its checkpoints.

A run of half a minute has no use for two gigabytes of them. All else is what `megatron-dpop train` does; the metrics
are the same to the last bit (tests/examples/test_arithmetic.py).
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpop_base.files import write_json
from examples.arithmetic.stage import Stage
from examples.arithmetic.trials import Trial
from megatron_dpop.analysis.spans import PairLogps
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.schema import SourceConfig
from megatron_dpop.runtime import processes

KL_PROBLEMS = 30


class ReachedError(Exception):
    """The weights are those that were waited for."""


class Onlooker:
    """Stands where the trainer's saver does, and looks at the weights in place of writing them."""

    def __init__(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        self.newest = 0
        self.best = None
        self.is_enough = is_enough

    def save(self, iteration: int) -> None:
        self.newest = iteration
        if self.is_enough():
            raise ReachedError

    def poll(self) -> None:
        pass

    def finish(self) -> None:
        pass


def train_here(tree: dict[str, Any], before: Callable[[Any], Callable[[], bool]] | None = None) -> tuple[Any, int]:
    """Trains in this process; returns the run, whose engine holds the weights, and the steps that they have taken.

    `before` is called with the run, its weights loaded; what it returns is asked at each of the config's checkpoints
    whether to end there.
    """
    config = config_from_dict(tree, origin="trial")
    device = processes.initialize(config.parallel, seed=config.train.seed)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.loop import Loop
    from megatron_dpop.training.reference_cache import step_data
    from megatron_dpop.training.resuming import begin, load_policy
    from megatron_dpop.training.run import build_run

    run = build_run(config, read_inputs(config, progress=False), device, quiet=True)
    begin(run)
    train, validation = step_data(run)
    first_step = load_policy(run)
    loop = Loop(run)
    loop.saver = Onlooker(before(run) if before is not None else lambda: False)
    with contextlib.suppress(ReachedError):
        loop.run(train, validation, first_step=first_step)
    return run, loop.saver.newest


def held_out_tokens(run: Any, pairs: Path) -> tuple[Any, list[int]]:
    """What the run's engine says of each token of the held-out pairs, and how many tokens of a pair are common."""
    from megatron_dpop.analysis.token_logps import token_logps
    from megatron_dpop.engine.batches import RowSource
    from megatron_dpop.losses.registry import make_loss
    from megatron_dpop.training.inputs import read_data, tokenizer_folder

    folder = tokenizer_folder(run.config, run.inputs.model)
    dataset = read_data(run.config, (SourceConfig(str(pairs)),), make_loss({"name": "dpo"}), folder, progress=False)
    source = RowSource(run.config, dataset, run.engine, shuffle=False)
    common = [dataset[at].common_prefix_tokens for at in range(len(dataset))]
    return token_logps(run.engine, source, lambda _: None), common


def reference_tokens(kept: Path, compute: Callable[[], list[PairLogps]]) -> list[PairLogps]:
    """What the model that all trials begin with says of held-out tokens: computed by the first of them, and kept."""
    if not kept.exists():
        found = [{"chosen": pair.chosen.tolist(), "rejected": pair.rejected.tolist()} for pair in compute()]
        write_json(kept, found)
    read = json.loads(kept.read_text(encoding="utf-8"))
    return [PairLogps(*(np.array(pair[side], np.float32) for side in ("chosen", "rejected"))) for pair in read]


def run_trial(trial: Trial, stage: Stage, least_margin: float | None) -> dict[str, Any]:
    """Trains and measures; returns one line of the results. `least_margin`: nats on held-out pairs, to end at."""
    import torch

    from examples.arithmetic.measure import give_weights, greedy_answers, load_model, mean_kl, token_summary

    torch.set_num_threads(1)
    started = time.process_time()
    pairs = stage.pairs(trial.edit, "validation")
    base: list[PairLogps] = []

    def summary(run: Any) -> dict[str, Any]:
        tokens, common = held_out_tokens(run, pairs)
        return token_summary(tokens, base, common)

    def before(run: Any) -> Callable[[], bool]:
        kept = stage.root / "reference" / f"{trial.edit}-held-out.json"
        base.extend(reference_tokens(kept, lambda: held_out_tokens(run, pairs)[0]))
        return lambda: least_margin is not None and summary(run)["margin"] >= least_margin

    with tempfile.TemporaryDirectory(prefix="trial-", dir=stage.root) as folder:
        run, steps = train_here(trial.config(stage, Path(folder) / "run"), before)
    reference, tokenizer = load_model(stage.transformers_model)
    policy, _ = load_model(stage.transformers_model)
    give_weights(run.engine, policy)
    problems = stage.problems["held-out"][: trial.problems]
    answers = greedy_answers(policy, tokenizer, [one.question for one in problems])
    return {
        "name": trial.name,
        "kind": trial.kind,
        "loss": trial.loss,
        "keys": dict(trial.keys),
        "edit": trial.edit,
        "seed": trial.seed,
        "rate": trial.rate,
        "steps": steps,
        **solved(problems, answers),
        **summary(run),
        "kl": mean_kl(policy, reference, answers[:KL_PROBLEMS]),
        "cpu_seconds": round(time.process_time() - started, 1),  # of one core: what a busy machine does not stretch
    }


def measure_start(stage: Stage) -> dict[str, Any]:
    """The line of the model that all trials begin with."""
    from examples.arithmetic.measure import greedy_answers, load_model

    problems = stage.problems["held-out"]
    answers = greedy_answers(*load_model(stage.transformers_model), [one.question for one in problems])
    taught = json.loads((stage.root / "sft.json").read_text())
    return {"name": "start", "kind": "start", **solved(problems, answers), "sft": taught}


def solved(problems: list[Any], answers: list[Any]) -> dict[str, Any]:
    marks = [one.is_solved_by(answer.text) for one, answer in zip(problems, answers, strict=True)]
    return {
        "problems": len(marks),
        "accuracy": sum(marks) / len(marks),
        "solved": "".join("1" if mark else "0" for mark in marks),  # by problem, so that models compare on each
        "first_answers": [answer.text for answer in answers[:3]],
    }
