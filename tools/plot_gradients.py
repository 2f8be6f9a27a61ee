"""Draws docs/images/loss_gradients.svg: what DPO and DPOP do to a correct token, by autograd.

python tools/plot_gradients.py [--output docs/images/loss_gradients.svg]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.registry import make_loss
from megatron_dpop.pages.colours import light

BETA, LAMBDA = 0.3, 50.0
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "loss_gradients.svg"
LOSSES = ("dpo", "dpop")


def losses_of(name: str, chosen_ratio: Tensor, rejected_ratio: Tensor) -> Tensor:
    """Losses [pairs] at log-ratios log pi/ref of the two sides, each [pairs]."""
    pairs = len(chosen_ratio)
    logps = torch.stack([chosen_ratio, rejected_ratio], 1).reshape(-1)
    options = {"lambda": LAMBDA} if name == "dpop" else {}
    batch = CompletionBatch(
        logps=logps,
        reference_logps=torch.zeros_like(logps),
        lengths=torch.ones(2 * pairs, dtype=torch.int64),
        example=torch.arange(pairs).repeat_interleave(2),
        preferred=torch.tensor([True, False] * pairs),
        num_examples=pairs,
    )
    return make_loss({"name": name, "beta": BETA, **options})(batch).losses


def target_logit_push(name: str, probability: Tensor, rejected_probability: float, ratio: float) -> Tensor:
    """d(-loss)/d(logit of the correct token) / (beta sigmoid(-z)), [probabilities].

    The token follows the edit: the same next token in both completions, with probability s(w) in the chosen
    and `rejected_probability` in the rejected one; the logit is shared, as in the paper. A vocabulary of two.
    ratio: log pi(w)/ref(w) of the whole chosen completion.
    """
    shared = torch.zeros_like(probability, requires_grad=True)
    rejected = torch.full_like(probability, rejected_probability)
    token_w = torch.nn.functional.logsigmoid(torch.logit(probability) + shared)
    token_l = torch.nn.functional.logsigmoid(torch.logit(rejected) + shared)
    losses = losses_of(name, token_w - token_w.detach() + ratio, token_l - token_l.detach())
    (gradient,) = torch.autograd.grad(-losses.sum(), shared)
    return gradient / (BETA * -torch.expm1(-losses.detach()))


def draw_loss(axes: plt.Axes) -> None:
    """Loss against the chosen log-ratio while the margin of the pair stays at 4 nats."""
    ratio = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for name in LOSSES:
        axes.plot(ratio, losses_of(name, ratio, ratio - 4.0), color=light(name), label=name.upper())
    axes.set_xlabel("log π(w)/ref(w), nats; margin fixed at 4 nats")
    axes.set_ylabel("loss")
    axes.set_title("The margin held, the chosen answer gained or lost", fontsize=10)
    axes.legend()


def draw_push(axes: plt.Axes) -> None:
    """Push on the correct token's logit against its probability, both sides of the hinge."""
    probability = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
    for name, label in (("dpo", "DPO; DPOP while π(w) ≥ ref(w)"), ("dpop", "DPOP while π(w) < ref(w)")):
        push = target_logit_push(name, probability, 0.5, ratio=-0.1)
        axes.plot(probability, push, color=light(name), label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xlabel("s(w), probability of the correct token; s(l) = 0.5")
    axes.set_ylabel("push on its logit (> 0: up)")
    axes.set_title("A token after the edit, the same in both answers", fontsize=10)
    axes.legend(fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the figure and prints its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    output: Path = parser.parse_args(argv).output
    # A fixed salt makes the SVG's ids, hence the file, the same on every run.
    mpl.rcParams.update({"svg.hashsalt": "megatron-dpop", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw_loss(left)
    draw_push(right)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
