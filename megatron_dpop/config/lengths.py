"""How long a run is: epochs as steps, and shares of the run as steps. Settled once its examples are counted."""

import math
from dataclasses import replace

from dpop_base.errors import UserError
from megatron_dpop.config.schema import Config

DEFAULT_WARMUP_SHARE = 0.1


def settle_lengths(config: Config, *, examples: int | None = None) -> Config:
    """The config with `train.epochs` and `optimizer.warmup_share` written as steps, both rounded up; a share
    of the run stays below the whole.

    `examples`: how many one epoch holds; needed where `train.epochs` is set. Raises UserError where no step is left
    between the warm-up and the decay.
    """
    steps = config.train.steps
    if config.train.epochs is not None:
        assert examples is not None, "an epoch's length is not known before the data is read"
        steps = math.ceil(config.train.epochs * examples / config.train.global_batch_pairs)
    warmup, share = config.optimizer.warmup_steps, config.optimizer.warmup_share
    if warmup is None:
        share = DEFAULT_WARMUP_SHARE if share is None else share
        warmup = min(math.ceil(share * steps), steps - 1)
    settled = replace(
        config,
        train=replace(config.train, steps=steps, epochs=None),
        optimizer=replace(config.optimizer, warmup_steps=warmup, warmup_share=None),
    )
    _check(settled, warmup, epochs=config.train.epochs, share=share)
    return settled


def decay_steps(config: Config) -> int:
    """The steps at the run's end over which schedule `wsd` decays."""
    return math.ceil(config.optimizer.decay_share * config.train.steps)


def _check(settled: Config, warmup: int, *, epochs: float | None, share: float | None) -> None:
    steps = settled.train.steps
    length = f"train.steps {steps}" if epochs is None else f"the {steps} steps of train.epochs {epochs:g}"
    key = (
        f"optimizer.warmup_steps: {warmup}" if share is None else f"optimizer.warmup_share: {share:g} ({warmup} steps)"
    )
    if warmup >= steps:
        raise UserError(f"{key} is not less than {length}; warm up for fewer steps")
    if settled.optimizer.schedule == "wsd" and warmup + decay_steps(settled) > steps:
        raise UserError(
            f"{key} and the {decay_steps(settled)} steps of optimizer.decay_share {settled.optimizer.decay_share:g} "
            f"are more than {length}; shorten one of them"
        )
