"""A training run held at its steps: the trainer's own objects, each step timed part by part."""

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dpop.config import Config


@dataclass(frozen=True)
class StepParts:
    """Seconds of one step on this rank. `rest` is what Megatron's timers do not name: zeroing, packing up, logging."""

    data: float
    forward: float
    backward: float
    reduce: float  # gradients over ranks, and what the optimizer gathers
    optimizer: float
    rest: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


# Megatron-Core's timers, by the part that they belong to.
TIMERS = {
    "forward": ("forward-compute",),
    "backward": ("backward-compute",),
    "reduce": (
        "all-grads-sync",
        "embedding-grads-all-reduce",
        "non-tensor-parallel-grads-all-reduce",
        "params-all-gather",
    ),
    "optimizer": (
        "optimizer-copy-to-main-grad",
        "optimizer-unscale-and-check-inf",
        "optimizer-clip-main-grad",
        "optimizer-inner-step",
        "optimizer-copy-main-to-model-params",
    ),
}


@dataclass(frozen=True)
class TimedStep:
    seconds: float
    parts: StepParts | None  # None: not asked for (each timer waits for the device)
    metrics: dict[str, Any]


class Session:
    """Takes one step after another of a config's run, from its starting weights."""

    def __init__(self, run: Any, *, timed_parts: bool) -> None:
        from megatron_dpop.training.metrics import StepMetrics
        from megatron_dpop.training.reference_cache import step_data
        from megatron_dpop.training.resuming import load_policy

        self.run = run
        self.engine = run.engine
        self.data, _ = step_data(run)
        load_policy(run)
        self.metrics = StepMetrics(self.engine, run.inputs.loss, self.data.source.dataset)
        self.step = 0
        self.timers = _megatron_timers(self.engine) if timed_parts else None

    def take_step(self) -> TimedStep:
        from megatron_dpop.training.reruns import Reruns
        from megatron_dpop.training.step import train_step

        data: Any = _TimedData(self.data) if self.timers is not None else self.data
        started = time.perf_counter()
        metrics = train_step(self.engine, data, self.metrics, Reruns(), self.step)
        seconds = time.perf_counter() - started
        self.step += 1
        parts = None
        if isinstance(data, _TimedData):
            named = {part: _elapsed(self.timers, names) for part, names in TIMERS.items()}
            parts = StepParts(data=data.seconds, **named, rest=seconds - data.seconds - sum(named.values()))
        return TimedStep(seconds, parts, metrics)


class _TimedData:
    """A run's data, with a watch."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def rows(self, step: int) -> Any:
        started = time.perf_counter()
        rows = self._data.rows(step)
        self.seconds += time.perf_counter() - started
        return rows


def _megatron_timers(engine: Any) -> Any:
    from megatron.core.timers import Timers

    timers = Timers(log_level=2, log_option="max")
    engine.config.timers = timers
    for optimizer in (engine.optimizer, *getattr(engine.optimizer, "chained_optimizers", ())):
        optimizer.config.timers = timers
    return timers


def _elapsed(timers: Any, names: tuple[str, ...]) -> float:
    return sum(timers(name).elapsed(reset=True) for name in names if name in timers._timers)


@contextmanager
def open_session(config: Config, *, pairs: Any = None, timed_parts: bool = False) -> Iterator[Session]:
    """A session of a config, in a folder beside its `run.dir` that is removed again; `pairs` replaces its data.

    Joins the ranks that a launcher has started, or is one rank alone.
    """
    from megatron_dpop.runtime import processes
    from megatron_dpop.runtime.rank import Rank

    folder = Path(f"{config.run.dir}-benchmark")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(folder)))
    device = processes.initialize(config.parallel, seed=config.train.seed)
    from megatron_dpop.training.resuming import begin
    from megatron_dpop.training.run import build_run

    run = build_run(config, _inputs(config, pairs), device)
    try:
        begin(run)
        yield Session(run, timed_parts=timed_parts)
    finally:
        if Rank.from_environment().rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    processes.shut_down()


def _inputs(config: Config, pairs: Any) -> Any:
    from megatron_dpop.training.inputs import read_inputs

    if pairs is None:
        return read_inputs(config, progress=False)
    from checkpoint_convert.locate import assets_folder
    from dpop_base.architectures import read_architecture
    from megatron_dpop.losses.registry import build_loss
    from megatron_dpop.training.inputs import Inputs, resolve_model

    model = resolve_model(config.model.path, key="model.path")
    return Inputs(model, read_architecture(assets_folder(model)), build_loss(config.loss), pairs, None, None)
