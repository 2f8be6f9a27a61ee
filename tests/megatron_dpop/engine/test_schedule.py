"""Learning rates of every schedule, step by step, against the formulas."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_dpop.config.load import config_from_dict

STEPS, WARMUP, LR = 40, 8, 2e-4


def _rates(**options: Any) -> list[float]:
    from megatron_dpop.engine.optimizer import build_scheduler

    tree = {
        "model": {"path": "m"},
        "data": {"train": "d"},
        "train": {"steps": STEPS},
        "optimizer": {"lr": LR, "warmup_steps": WARMUP, **options},
    }
    optimizer: Any = SimpleNamespace(param_groups=[{}], chained_optimizers=None)
    scheduler = build_scheduler(config_from_dict(tree, origin="test"), optimizer)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(increment=1)
    return rates


def _falling(share: float, *, schedule: str) -> float:
    """What is left of the way from the peak to the end, after a share of the decay."""
    return {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[schedule]


@pytest.mark.parametrize(
    ("schedule", "min_lr"),
    [("constant", 0.0), *((name, least) for name in ("linear", "cosine", "wsd") for least in (0.0, 2e-5))],
)
def test_learning_rates(schedule: str, min_lr: float) -> None:
    extra = {"decay_share": 0.25} if schedule == "wsd" else {}
    rates = _rates(schedule=schedule, min_lr=min_lr, **extra)
    start = 30 if schedule == "wsd" else WARMUP
    for step, rate in enumerate(rates):
        wanted = LR
        if step < WARMUP:
            wanted = LR * step / WARMUP
        elif schedule != "constant" and step > start:
            shape = "linear" if schedule == "wsd" else schedule
            wanted = min_lr + (LR - min_lr) * _falling((step - start) / (STEPS - start), schedule=shape)
        assert rate == pytest.approx(wanted, rel=1e-9, abs=1e-15), step
    assert rates[-1] == pytest.approx(LR if schedule == "constant" else min_lr, abs=1e-15)
