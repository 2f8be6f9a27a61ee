"""Takes a suspicious step a second time, to tell a fault of the machine from one of the run.

The judge is Megatron-Core's rerun state machine. It decides nothing here: a loss that is no number stops the run all
the same, a spike does not, and the weights after a step are those of its last attempt, the same numbers where the
machine is sound.
"""

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.rerun_state_machine import (
    RerunMode,
    destroy_rerun_state_machine,
    get_rerun_state_machine,
    initialize_rerun_state_machine,
)

# A loss this many times the largest of the run's first hundred is a spike (Megatron-LM's own factor).
SPIKE_FACTOR = 10.0

MEGATRONS_LOG = "megatron.core.rerun_state_machine"


class Reruns:
    """Attempts at steps. Without a mode there is one attempt a step, and no cost."""

    def __init__(self, mode: str | None = None, log: Path | None = None) -> None:
        """mode: a value of Megatron's `RerunMode`; log: the file of rejected results, which rank 0 writes."""
        self.mode = mode
        if mode is None:
            return
        logger = logging.getLogger(MEGATRONS_LOG)
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
        destroy_rerun_state_machine()  # Megatron's code may have made a default one by looking at it
        is_writer = log is not None and dist.get_rank() == 0
        initialize_rerun_state_machine(
            mode=RerunMode(mode), result_rejected_tracker_filename=str(log) if is_writer else None
        )

    def attempts(self) -> Iterator[None]:
        """Each time the caller is to take the step's forward and backward pass, and to `judge` its loss."""
        if self.mode is None:
            yield
            return
        machine = get_rerun_state_machine()
        while machine.should_run_forward_backward(None):
            yield
        machine.should_checkpoint_and_exit()  # tells it that the step is over

    def judge(self, loss: float) -> None:
        """Every rank calls it with the same loss, so that all agree on a second attempt."""
        if self.mode is None:
            return
        machine = get_rerun_state_machine()
        value = torch.tensor(loss, dtype=torch.float64)
        for message, rejects in (
            ("the loss is not a finite number", lambda found: not math.isfinite(found)),
            ("spiky loss", partial(machine.is_unexpectedly_large, threshold=SPIKE_FACTOR, context="loss")),
        ):
            machine.validate_result(value, rejects, message, fatal=False)
