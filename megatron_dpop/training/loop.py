"""The loop over steps: train, validate, record, save."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dpop_base.checkpoint_names import iteration_name
from dpop_base.metric_names import ACCURACY, CHOSEN_MINUS_REFERENCE, LOSS, PAIRS_PER_SECOND, STEP_SECONDS
from megatron_dpop.checkpoints.saving import Saver
from megatron_dpop.engine.batches import StepData
from megatron_dpop.engine.delayed_scales import warm_scales
from megatron_dpop.health import Alert
from megatron_dpop.runtime.beats import step_took
from megatron_dpop.runtime.stop import StoppedError, UnhealthyError
from megatron_dpop.tracking.outcome import validation_line
from megatron_dpop.tracking.recorder import Recorder
from megatron_dpop.tracking.weights_and_biases import WandbRun
from megatron_dpop.training.best import Best
from megatron_dpop.training.metrics import StepMetrics
from megatron_dpop.training.reruns import Reruns
from megatron_dpop.training.run import Run
from megatron_dpop.training.samples import Samples
from megatron_dpop.training.step import train_step
from megatron_dpop.training.timing import Stragglers
from megatron_dpop.training.validation import validate


@dataclass(frozen=True)
class HeldOut:
    data: StepData
    metrics: StepMetrics


class Loop:
    def __init__(self, run: Run, wandb: WandbRun | None = None) -> None:
        """`wandb`: where the numbers go too, on rank 0."""
        self.config = run.config
        self.engine = run.engine
        self.folder = run.folder
        self.console = run.console
        self.heartbeat = run.heartbeat
        self.stop = run.stop
        self.loss = run.inputs.loss
        self.stragglers = Stragglers()
        self.reruns = Reruns(run.config.train.rerun, run.folder.rejected_results)
        self.wandb = wandb
        self.recorder: Recorder | None = None
        self.stops_for: Alert | None = None  # on rank 0
        options = run.config.checkpoint
        self.samples = (
            Samples(run, run.validation, wandb) if run.validation is not None and run.config.logging.samples else None
        )
        self.saver = Saver(
            run.engine,
            run.folder.checkpoints,
            keep=options.keep,
            asynchronous=options.asynchronous,
            on_saved=lambda saved: run.heartbeat.beat("training", saved=saved),
        )
        self.best = None if options.best is None else Best(options.best, run.folder, self.saver)

    def run(self, train: StepData, validation: StepData | None, *, first_step: int) -> int:
        """Takes the steps from `first_step` on; each line of metrics was measured before its step's update.

        Returns how many the run has then taken: fewer than `train.steps` where `checkpoint.best` ran out of patience.
        Raises StoppedError where a signal asked for a stop, and UnhealthyError where the health monitor saw what
        `logging.stop_on` names: after the step in which all ranks learnt of it, saved.
        """
        steps = self.config.train.steps
        trained_on = StepMetrics(self.engine, self.loss, train.source.dataset, self.stop)
        held_out = (
            HeldOut(validation, StepMetrics(self.engine, self.loss, validation.source.dataset)) if validation else None
        )
        self.saver.newest = first_step
        if dist.get_rank() == 0:
            self.recorder = Recorder(self.config, self.folder, self.wandb, first_step=first_step, say=self.console.say)
            self._handle(self.recorder.unhandled)
        if self.best is not None:
            self.best.recall(first_step)
        if first_step < steps:
            warm_scales(self.engine, train.source, first_step)
        with self.console.progress(self.loss.name, steps, done=first_step) as bar:
            for step in range(first_step, steps):
                validated = self._validate(held_out, step) if self._validates_at(step) else {}
                if self.best is not None and self.best.is_patience_over:
                    return self._end(step, validated)
                trained = train_step(self.engine, train, trained_on, self.reruns, step, progress=step / steps)
                values = {**trained, **validated}
                logged = step % self.config.logging.every == 0
                if logged or validated:
                    self._write(values)
                bar.update(step + 1, summary(values), line=logged)
                self.heartbeat.beat("training", step=step + 1, steps=steps)
                step_took(trained[STEP_SECONDS])
                if (slow := self.stragglers.observe(trained)) is not None:
                    self.console.say(slow)
                if self.stop.agreed or (step + 1) % self.config.checkpoint.every == 0 or step + 1 == steps:
                    self.saver.save(step + 1)
                self.saver.poll()
                if self.stop.agreed and step + 1 < steps:
                    self._leave(step + 1)
        return self._end(steps, self._validate(held_out, steps))

    def _validate(self, held_out: HeldOut | None, step: int) -> dict[str, float]:
        """Metrics of the weights that have taken `step` steps; none without data to validate on."""
        if held_out is None:
            return {}
        same = step == 0 and self._starts_as_reference()
        progress = step / self.config.train.steps
        validated = validate(held_out.data, held_out.metrics, step, progress=progress, policy_is_reference=same)
        if self.samples is not None:
            self.samples.write(step)
        torch.cuda.empty_cache()  # as after the reference pass
        self.console.say(validation_line(step, validated))
        if self.best is not None:
            self.best.judge(step, validated)
        return validated

    def _end(self, steps: int, validated: dict[str, float]) -> int:
        """Leaves the run with its last weights and their validation; returns the steps taken."""
        if self.saver.newest < steps:
            self.saver.save(steps)
        self.saver.finish()  # where a disk is full, the checkpoint is what it has no room for
        if self.best is not None:
            self.console.say(self.best.said(steps))
        if validated:
            self._write({"step": steps, **validated})
        self._close()
        return steps

    def _leave(self, done: int) -> None:
        self._close()
        where = f"after step {done} of {self.config.train.steps}, saved as {iteration_name(done)}"
        if not self.stop.agreed_unhealthy:
            raise StoppedError(where)
        seen = [self.stops_for]
        dist.broadcast_object_list(seen, src=0)
        raise UnhealthyError(f"{seen[0]} Stopped {where}, by logging.stop_on; the same command goes on from there")

    def _close(self) -> None:
        self.saver.finish()
        if self.recorder is not None:
            self.recorder.close()

    def _starts_as_reference(self) -> bool:
        return self.loss.needs_reference and self.config.reference.model is None

    def _validates_at(self, step: int) -> bool:
        every = self.config.train.validate_every
        return step == 0 or (every is not None and step % every == 0)

    def _write(self, values: dict[str, Any]) -> None:
        if self.recorder is not None:
            self._handle(self.recorder.write(values))

    def _handle(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.console.insist(f"health: {alert}")
            if alert.rule in self.config.logging.stop_on:
                self.stops_for = self.stops_for or alert
                self.stop.is_unhealthy = True


def summary(values: dict[str, Any]) -> str:
    """One line for the terminal."""
    parts = [f"loss {values[LOSS]:.4f}"]
    for name, label in (
        (ACCURACY, "accuracy"),
        (CHOSEN_MINUS_REFERENCE, "chosen - reference"),
        (PAIRS_PER_SECOND, "pairs/s"),
    ):
        if name in values:
            parts.append(f"{label} {values[name]:.2f}")
    return "  ".join(parts)
