"""Trainers that `compare` sets against each other: ours and TRL's, on the same weights, tokens, order and optimizer."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.made_up_pairs import MadeUpPairs, lengths_of
from benchmarks.memory import finish_launched, peak_bytes, reset_peak

BETA = 0.1
LEARNING_RATE = 5e-6
ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


@dataclass(frozen=True)
class Task:
    """What all contenders train on."""

    model: Path  # Hugging Face folder
    pairs: str  # a file of pairs, or a kind of made-up ones
    steps: int
    batch_pairs: int
    precision: str  # bf16, fp32
    threads: int
    max_tokens: int
    row_tokens: int
    scratch: Path


@dataclass(frozen=True)
class Contender:
    name: str
    trainer: str  # ours, trl
    options: dict[str, Any] = field(default_factory=dict)  # of our config's sections, or of TRL's DPOConfig


OURS = Contender("ours", "ours")
UNSHARED = Contender("ours, prefixes not shared", "ours", {"data": {"share_prefix": False}})
# Like with like: TRL's default checkpoints its layers.
RECOMPUTED = Contender("ours, layers recomputed", "ours", {"train": {"recompute": "full"}})
# As DPOConfig comes: 8 pairs a device, gradient checkpointing, the reference run in every step.
TRL_DEFAULT = Contender("TRL, default", "trl")
TRL_PRECOMPUTED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
CONTENDERS = {
    contender.name: contender
    for contender in (
        OURS,
        UNSHARED,
        RECOMPUTED,
        TRL_DEFAULT,
        *(
            Contender(
                f"TRL, precomputed, {pairs} pairs at once",
                "trl",
                {**TRL_PRECOMPUTED, "per_device_train_batch_size": pairs},
            )
            for pairs in (1, 2, 4, 8)
        ),
        Contender(
            "TRL, precomputed, 4 pairs at once, bf16 weights",
            "trl",
            {**TRL_PRECOMPUTED, "per_device_train_batch_size": 4, "model_init_kwargs": {"dtype": "bfloat16"}},
        ),
    )
}

# Called before and after each step; the first call comes when the trainer is ready.
Turn = Callable[[], None]


@dataclass
class ContenderRun:
    """What one contender's run gave."""

    step_seconds: list[float]
    processor_seconds: list[float]  # of all of the process's threads, a step: other work on the machine changes it less
    losses: list[float]
    peak_bytes: int  # while it trained, the interpreter included
    setup_seconds: float  # loading, reference log-probabilities where they are precomputed
    tokens: list[int]  # of each step's pairs as this trainer reads them, padding not counted


def config_tree(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """Our config for the task."""
    tree: dict[str, Any] = {
        "model": {"path": str(task.model)},
        "precision": {"params": task.precision},
        "data": {"train": task.pairs, "max_tokens": task.max_tokens, "row_tokens": task.row_tokens},
        "loss": {"name": "dpo", "beta": BETA},
        "optimizer": {
            "lr": LEARNING_RATE,
            "betas": list(ADAM["betas"]),
            "eps": ADAM["eps"],
            "weight_decay": ADAM["weight_decay"],
            "schedule": "constant",
            "warmup_steps": 0,
            "clip_norm": 1.0,
        },
        "train": {"steps": task.steps, "global_batch_pairs": task.batch_pairs},
        "checkpoint": {"export_hf": False},
        "logging": {"tensorboard": False},
        "run": {"dir": str(task.scratch / "ours")},
    }
    for section, values in options.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def made_up_pairs(kind: str, model: Path, pairs: int) -> MadeUpPairs | None:
    """None for a file of real ones."""
    lengths = lengths_of(kind)
    if lengths is None:
        return None
    from checkpoint_convert.locate import assets_folder
    from dpop_base.architectures import read_architecture

    return MadeUpPairs(lengths, pairs, vocab_size=read_architecture(assets_folder(model)).vocab_size)


def run_ours(task: Task, contender: Contender, turn: Turn) -> ContenderRun:
    from benchmarks.session import open_session
    from megatron_dpop.config.load import config_from_dict

    started = time.perf_counter()
    config = config_from_dict(config_tree(task, contender.options), origin="benchmark")
    pairs = made_up_pairs(task.pairs, task.model, task.steps * task.batch_pairs)
    with open_session(config, pairs=pairs) as session:
        setup_seconds = time.perf_counter() - started
        outcome = ContenderRun([], [], [], 0, setup_seconds, [])
        gc.collect()
        reset_peak()
        turn()
        for step in range(task.steps):
            source = session.data.source
            outcome.tokens.append(int(source.shapes.row_tokens[source.examples_of_step(step)].sum()))
            busy = time.process_time()
            timed = session.take_step()
            outcome.processor_seconds.append(time.process_time() - busy)
            outcome.step_seconds.append(timed.seconds)
            outcome.losses.append(timed.metrics["loss"])
            turn()
        outcome.peak_bytes = peak_bytes()
    return outcome


def run_trl(task: Task, contender: Contender, turn: Turn) -> ContenderRun:
    import trl
    from transformers import AutoTokenizer

    from megatron_dpop.runtime.devices import on_gpu

    started = time.perf_counter()
    examples = ordered_examples(task)
    at_once = contender.options.get("per_device_train_batch_size", min(8, task.batch_pairs))  # DPOConfig's own is 8
    assert task.batch_pairs % at_once == 0, f"{at_once} pairs at once do not divide {task.batch_pairs}"
    arguments = {
        "output_dir": str(task.scratch / "trl"),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": task.batch_pairs // at_once,
        "max_steps": task.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "beta": BETA,
        "bf16": task.precision == "bf16",
        "use_cpu": not on_gpu(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        **{key: value for key, value in contender.options.items() if key != "per_device_train_batch_size"},
    }

    class Trainer(trl.DPOTrainer):
        """TRL's, on tokens that are given: the same ones that we train on."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    watch = _step_callback(turn)
    trainer = Trainer(
        model=str(task.model),
        args=trl.DPOConfig(**arguments),
        train_dataset=trl_dataset(examples),
        processing_class=AutoTokenizer.from_pretrained(task.model, trust_remote_code=False),
        callbacks=[watch],
    )
    watch.setup_started = started
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    sizes = [2 * len(e.prompt) + sum(len(c) for c in e.completions) for e in examples]
    tokens = [sum(sizes[at : at + task.batch_pairs]) for at in range(0, len(sizes), task.batch_pairs)]
    return ContenderRun(
        watch.step_seconds, watch.processor_seconds, losses, watch.peak_bytes, watch.setup_seconds, tokens
    )


def ordered_examples(task: Task) -> list[Any]:
    """Our data set's examples in the order in which our steps take them."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.losses.registry import build_loss
    from megatron_dpop.rows.schedule import step_examples
    from megatron_dpop.training.inputs import read_data

    data: Any = made_up_pairs(task.pairs, task.model, task.steps * task.batch_pairs)
    config = config_from_dict(config_tree(task, {}), origin="benchmark")
    if data is None:
        data = read_data(config, config.data.train, build_loss(config.loss), task.model, progress=False)
    return [
        data[index]
        for step in range(task.steps)
        for index in step_examples(seed=config.train.seed, step=step, batch=task.batch_pairs, examples=len(data))
    ]


def trl_dataset(examples: Sequence[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [example.prompt.tolist() for example in examples],
            "chosen_ids": [example.completions[0].tolist() for example in examples],
            "rejected_ids": [example.completions[1].tolist() for example in examples],
        }
    )


def _step_callback(turn: Turn) -> Any:
    """Times each step from the end of the last one, so that fetching its batch counts too."""
    from transformers import TrainerCallback

    class StepWatch(TrainerCallback):
        def __init__(self) -> None:
            self.step_seconds: list[float] = []
            self.processor_seconds: list[float] = []
            self.peak_bytes = 0
            self.setup_seconds = self.setup_started = self.started = self.busy = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.setup_seconds = time.perf_counter() - self.setup_started
            gc.collect()
            reset_peak()
            self._wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            finish_launched()
            self.step_seconds.append(time.perf_counter() - self.started)
            self.processor_seconds.append(time.process_time() - self.busy)
            self.peak_bytes = peak_bytes()
            self._wait()

        def _wait(self) -> None:
            turn()
            finish_launched()
            self.started, self.busy = time.perf_counter(), time.process_time()

    return StepWatch()


TRAINERS: dict[str, Callable[[Task, Contender, Turn], ContenderRun]] = {"ours": run_ours, "trl": run_trl}
