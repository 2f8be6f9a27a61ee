"""Epochs and shares become steps."""

from typing import Any

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config import Config
from megatron_dpop.config.lengths import decay_steps, settle_lengths
from megatron_dpop.config.load import as_dict, config_from_dict


def _config(**sections: Any) -> Config:
    return config_from_dict({"model": {"path": "m"}, "data": {"train": "d"}, **sections}, origin="test")


@pytest.mark.parametrize(
    ("epochs", "examples", "steps"),
    [(1, 640, 10), (1, 641, 11), (2.5, 128, 5), (0.01, 64, 1), (3, 5, 1)],
)
def test_epochs_are_whole_steps(epochs: float, examples: int, steps: int) -> None:
    config = _config(train={"epochs": epochs, "global_batch_pairs": 64}, optimizer={"warmup_steps": 0})
    settled = settle_lengths(config, examples=examples)
    assert (settled.train.steps, settled.train.epochs) == (steps, None)


@pytest.mark.parametrize(
    ("share", "steps", "warmup"), [(0.1, 50, 5), (0.1, 51, 6), (0, 3, 0), (0.03, 10, 1), (0.9, 4, 3), (0.1, 1, 0)]
)
def test_a_share_of_the_run_is_rounded_up(share: float, steps: int, warmup: int) -> None:
    settled = settle_lengths(_config(train={"steps": steps}, optimizer={"warmup_share": share}))
    assert settled.optimizer.warmup_steps == warmup


def test_what_is_settled_is_a_config_that_stays_as_it_is() -> None:
    config = _config(train={"epochs": 2}, optimizer={"warmup_share": 0.1, "schedule": "wsd"})
    settled = settle_lengths(config, examples=3200)
    again = config_from_dict(as_dict(settled), origin="test")
    assert again == settled == settle_lengths(again)
    assert (settled.train.steps, settled.optimizer.warmup_steps, decay_steps(settled)) == (100, 10, 10)


def test_a_tenth_of_a_run_warms_up_where_nothing_is_said() -> None:
    settled = settle_lengths(_config(train={"steps": 30}))
    assert (settled.optimizer.warmup_steps, settled.optimizer.lr) == (3, 1e-6)


REFUSED = [
    (
        {"train": {"epochs": 1}, "optimizer": {"warmup_steps": 100}},
        "optimizer.warmup_steps: 100 is not less than the 2 steps of train.epochs 1; warm",
    ),
    (
        {"train": {"steps": 10}, "optimizer": {"warmup_share": 0.5, "schedule": "wsd", "decay_share": 0.6}},
        r"warmup_share: 0.5 \(5 steps\) and the 6 steps of optimizer.decay_share 0.6 are more than train.steps 10",
    ),
    (
        {"train": {"steps": 10}, "optimizer": {"warmup_steps": 4, "schedule": "wsd", "decay_share": 0.7}},
        "warmup_steps: 4 and the 7 steps of optimizer.decay_share 0.7 are more than train.steps 10; shorten",
    ),
]


@pytest.mark.parametrize(("sections", "message"), REFUSED)
def test_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle_lengths(_config(**sections), examples=128)


@pytest.mark.parametrize(
    ("section", "keys"),
    [("train", {"steps": 3, "epochs": 1}), ("optimizer", {"warmup_steps": 3, "warmup_share": 0.1})],
)
def test_one_length_is_given_in_one_way(section: str, keys: dict[str, Any]) -> None:
    both = " and ".join(keys)
    with pytest.raises(UserError, match=f"{section}: .*{both} say the same in two ways; leave one"):
        _config(**{section: keys})
    first, second = keys
    kept = getattr(_config(**{section: {**keys, first: None}}), section)
    assert getattr(kept, second) == keys[second]
