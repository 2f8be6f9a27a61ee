"""The checkpoint with the best validation: kept however old it is, exported, and what ends a run that does not improve.

Which it is follows from metrics.jsonl and the checkpoints that are there, so a run that goes on knows it again.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dpop_base.checkpoint_names import iteration_name
from dpop_base.files import write_json
from dpop_base.run_names import BEST
from megatron_dpop.checkpoints.complete import incompleteness, saved_iterations
from megatron_dpop.checkpoints.saving import Saver
from megatron_dpop.config.schema import BestConfig
from megatron_dpop.tracking.run_folder import RunFolder


@dataclass
class Best:
    """Judges each validation; every rank calls every method and comes to the same, since their metrics are the same."""

    options: BestConfig
    folder: RunFolder
    saver: Saver
    _value: float | None = None
    _since: int = 0  # validations since the best one

    @property
    def iteration(self) -> int | None:
        return self.saver.best

    def recall(self, first_step: int) -> None:
        """What the validations before `first_step` left: the best of those whose checkpoint is there."""
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            found[0] = self._recalled(first_step)
        dist.broadcast_object_list(found, src=0)
        self.saver.best, self._value, self._since = found[0]

    def _recalled(self, first_step: int) -> tuple[int | None, float | None, int]:
        checkpoints = self.folder.checkpoints
        there = {
            saved
            for saved in saved_iterations(checkpoints)
            if incompleteness(checkpoints / iteration_name(saved)) is None
        }
        best, value, since = None, None, 0
        for step, validated in _validations(self.folder.metrics, self.options.metric):
            if 0 < step < first_step:
                is_better = self._is_better(validated, value)
                since = 0 if is_better else since + 1
                if is_better and step in there:
                    best, value = step, validated
        return best, value, since

    def judge(self, step: int, validated: dict[str, float]) -> None:
        """Takes the validation of the weights that have taken `step` steps, and saves them where they are the best.

        The starting weights are no candidate: they were there before.
        """
        if step == 0:
            return
        value = validated.get(self.options.metric, math.nan)
        if not self._is_better(value, self._value):
            self._since += 1
            return
        if self.saver.newest != step:
            self.saver.save(step)  # while the one that was best till now stays
        self.saver.best, self._value, self._since = step, value, 0
        if dist.get_rank() == 0:
            record = {"step": step, "checkpoint": iteration_name(step), self.options.metric: value}
            write_json(self.folder.path / BEST, record)

    @property
    def is_patience_over(self) -> bool:
        return self.options.patience is not None and self._since >= self.options.patience

    def said(self, step: int) -> str:
        """What became of it, once the run has ended after `step` steps."""
        if self.iteration is None:
            return f"no validation gave a number for {self.options.metric}; there is no best checkpoint"
        best = f"best {self.options.metric}: {self._value:.6g} after step {self.iteration}"
        if self.is_patience_over:
            return f"{best}; {self._since} validations since were no better, so the run ends after step {step}"
        return best

    def _is_better(self, value: float, than: float | None) -> bool:
        """A tie is not, and what is no number never."""
        if math.isnan(value):
            return False
        return than is None or (value > than if self.options.mode == "max" else value < than)


def _validations(path: Path, metric: str) -> Iterable[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that hold the metric."""
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if metric in line:
                yield line["step"], line[metric]
