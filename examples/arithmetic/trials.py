"""A trial: one loss on one kind of pairs, in one order of them; and its run's config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.arithmetic.stage import FORM, Stage

# As all of docs/paper has: 12 steps of 8 pairs, two of warm-up, a cosine to zero. Four times the paper's rate: at that
# one (`accuracy.slow_dpo`) so few steps hardly move a model that has just been taught its task.
RATE, STEPS, PAIRS_A_STEP = 2.0e-4, 12, 8


@dataclass(frozen=True)
class Trial:
    loss: str
    keys: tuple[tuple[str, float], ...] = ()  # of the loss
    edit: str = "low"
    seed: int = 0  # of the order of the pairs, and so of which of them are seen
    rate: float = RATE
    ends_at_margin_of: "Trial | None" = None  # the first step at which the held-out margin is no less
    problems: int = 300  # of the held-out ones, to be answered

    @property
    def kind(self) -> str:
        """The name without the seed: what is averaged over seeds."""
        keys = "".join(f"-{name}{value:g}" for name, value in self.keys)
        rate = "" if self.rate == RATE else f"-lr{self.rate:g}"
        end = "" if self.ends_at_margin_of is None else f"-margin-of-{self.ends_at_margin_of.loss}"
        return f"{self.edit}-{self.loss}{keys}{rate}{end}"

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}"

    def config(self, stage: Stage, folder: Path) -> dict[str, Any]:
        return {
            "model": {"path": str(stage.model)},
            "data": {"train": str(stage.pairs(self.edit, "train")), **FORM},
            "loss": {"name": self.loss, **dict(self.keys)},
            "reference": {"cache": str(stage.root / "reference" / f"{self.edit}-seed{self.seed}")},
            "optimizer": {"lr": self.rate, "warmup_steps": 2},
            "train": {"steps": STEPS, "global_batch_pairs": PAIRS_A_STEP, "seed": self.seed},
            "checkpoint": {"every": STEPS if self.ends_at_margin_of is None else 1},
            "logging": {"tensorboard": False},
            "run": {"dir": str(folder)},
        }
