"""The push on the chosen answer, as docs/losses.md writes it for each pair loss, against autograd."""

import math

import pytest
import torch

from megatron_dpop.losses.registry import REGISTRY, make_loss
from tests.megatron_dpop.losses.batches import random_pairs

BETA, PAIRS = 0.3, 60
OPTIONS = {"dpo": {"label_smoothing": 0.1}, "dpop": {"lambda": 5.0}, "bpo": {"alpha": 0.7}}
NAMES = [name for name, definition in REGISTRY.items() if definition.kind == "pair"]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def slope(value: float) -> float:
    return sigmoid(value) * sigmoid(-value)


def push(name: str, logps: tuple[float, float], references: tuple[float, float], tokens: tuple[int, int]) -> float:
    """-d loss / d log pi(w). All arguments: chosen, rejected."""
    b, (w, l), (length, other) = BETA, logps, tokens  # noqa: E741
    rw, rl = w - references[0], l - references[1]
    z, u, sw, sl = b * (rw - rl), b * rw, w / length, l / other
    if name == "orpo":
        odds = (sw - math.log1p(-math.exp(sw))) - (sl - math.log1p(-math.exp(sl)))
        return (1 + b * sigmoid(-odds) / (1 - math.exp(sw))) / length
    m = sigmoid(z / 0.05)
    turn = m * (1 - m) / 0.05 * (math.log(sigmoid(z)) + math.exp(-z))
    return {
        "dpo": b * (sigmoid(-z) - 0.1),
        "robust": b * (0.9 * sigmoid(-z) + 0.1 * sigmoid(z)) / 0.8,
        "exo": b * slope(z) * (math.log(0.999 / 0.001) - z),
        "discopop": b * (sigmoid(-z) * (1 - m) + math.exp(-z) * m - turn),
        "hinge": b * (z < 1),
        "ipo": 1 / b - 2 * (rw - rl),
        "dpop": b * sigmoid(b * 5.0 * max(0.0, -rw) - z) * (1 + 5.0 * (rw < 0)),
        "cal_dpo": sigmoid(rl - rw) + 1 / b - 2 * rw,
        "sppo_hard": 1 / b - 2 * rw,
        "nca": b * (1 - 1.5 * sigmoid(u)),
        "bpo": b * sigmoid(-u) * (rw < -0.7 * rl),
        "dpo_shift": b * sigmoid(0.75 * b * rl - u),
        "apo_zero": b * slope(u),
        "bco": b * sigmoid(-u),
        "apo_down": b * (slope(z) - slope(u)),
        "simpo": b / length * sigmoid(1.0 - b * (sw - sl)),
        "cpo": b * sigmoid(-b * (w - l)) + 1.0,
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_push_on_the_chosen_answer(name: str) -> None:
    batch = random_pairs(PAIRS, seed=3)
    output = make_loss({"name": name, "beta": BETA, **OPTIONS.get(name, {})})(batch)
    (gradient,) = torch.autograd.grad(-output.losses.sum(), batch.logps)
    assert batch.reference_logps is not None
    for pair in range(PAIRS):
        sides = sorted((2 * pair, 2 * pair + 1), key=lambda row: not batch.preferred[row])
        policy, reference, tokens = (
            tuple(values[side].item() for side in sides)
            for values in (batch.logps, batch.reference_logps, batch.lengths)
        )
        wanted = push(name, policy, reference, tokens)
        assert gradient[sides[0]].item() == pytest.approx(wanted, rel=1e-9, abs=1e-12), pair
