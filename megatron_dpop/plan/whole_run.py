"""Seconds of a whole run, from those of a step: its steps, and the passes without gradients before and between them."""

from dataclasses import asdict, dataclass
from typing import Any

from megatron_dpop.config import Config
from megatron_dpop.config.lengths import settle_lengths

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class RunTime:
    """What is computed: reading data, converting, saving and exporting are not counted."""

    devices: int
    steps: int
    examples: int  # trained on, those of later epochs too
    training: float
    reference: float  # one pass over the examples and the held-out ones
    validation: float  # all passes; 0 where the held-out examples cannot be counted

    @property
    def seconds(self) -> float:
        return self.training + self.reference + self.validation

    @property
    def hours(self) -> float:
        return self.seconds / SECONDS_PER_HOUR

    @property
    def device_hours(self) -> float:
        return self.devices * self.hours

    def cost(self, price: float) -> float:
        """Returns it in the unit of `price`, which is that of one device for an hour."""
        return self.device_hours * price

    def as_json(self, price: float | None) -> dict[str, Any]:
        found = {**asdict(self), "seconds": self.seconds, "device_hours": self.device_hours}
        return found if price is None else {**found, "price": price, "cost": self.cost(price)}


@dataclass(frozen=True)
class Counted:
    """How many examples the data hold, where they can be read."""

    examples: int | None = None
    held_out: int | None = None


def run_time(
    config: Config, *, devices: int, step_seconds: float, forward_share: float, has_reference: bool, counted: Counted
) -> RunTime | None:
    """`forward_share` is that of an example's training that its forward pass takes.

    Where the examples are not counted, every step is taken to have new ones, which all need a reference; and a length
    in epochs says nothing: None.
    """
    if config.train.epochs is not None:
        if counted.examples is None:
            return None
        config = settle_lengths(config, examples=counted.examples)
    steps, batch = config.train.steps, config.train.global_batch_pairs
    example_seconds = step_seconds / batch
    held_out = counted.held_out or 0
    referred = min(counted.examples or steps * batch, steps * batch) + held_out if has_reference else 0
    # At the start the policy is the reference, unless that is another model: its log-probabilities are known.
    known = has_reference and config.reference.model is None
    return RunTime(
        devices=devices,
        steps=steps,
        examples=steps * batch,
        training=steps * step_seconds,
        reference=referred * example_seconds * forward_share,
        validation=(validations(config) - known) * held_out * example_seconds * forward_share,
    )


def validations(config: Config) -> int:
    """Counts them: before the first step, after the last, and every `train.validate_every` between."""
    every = config.train.validate_every
    return 2 + ((config.train.steps - 1) // every if every else 0)
