"""What is kept of a run's numbers, and what the health monitor says of them. On rank 0 only."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from megatron_dpop.config import Config
from megatron_dpop.config.load import as_dict, flatten
from megatron_dpop.health import Alert, Monitor
from megatron_dpop.tracking.history import add_line, keep_history
from megatron_dpop.tracking.run_folder import RunFolder, append_line, write_lines
from megatron_dpop.tracking.weights_and_biases import WandbRun


class Recorder:
    """Writes metrics.jsonl, health.jsonl, TensorBoard's events and Weights & Biases' run.

    The monitor reads the lines that a resumed run keeps anew: what it knows, and health.jsonl, depends on nothing else.
    """

    def __init__(
        self, config: Config, folder: RunFolder, wandb: WandbRun | None, *, first_step: int, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._wandb = wandb
        self._monitor = Monitor(flatten(as_dict(config)))
        history = keep_history(folder.metrics, first_step, say)
        kept = [alert for line in history for alert in self._observe(line)]
        write_lines(folder.health, map(asdict, kept))
        # A run that was killed after its last line has not acted on what that line showed.
        self.unhandled = [alert for alert in kept if alert.step == first_step - 1]
        self._board: SummaryWriter | None = None
        if config.logging.tensorboard:
            self._board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step)

    def write(self, line: dict[str, Any]) -> list[Alert]:
        """Keeps a line; returns what the health monitor sees for the first time."""
        add_line(self._folder.metrics, line)
        step = line["step"]
        values = {name: value for name, value in line.items() if name != "step"}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(step, values)
        new = self._observe(line)
        for alert in new:
            self._send(alert)
        return new

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.close()

    def _observe(self, line: dict[str, Any]) -> list[Alert]:
        return self._monitor.observe(line["step"], {name: value for name, value in line.items() if name != "step"})

    def _send(self, alert: Alert) -> None:
        append_line(self._folder.health, asdict(alert))
        if self._board is not None:
            self._board.add_text("health", str(alert), alert.step)
        if self._wandb is not None:
            self._wandb.alert(alert.title, str(alert))
