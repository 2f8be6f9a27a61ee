"""Writes the computed parts of docs/paper/accuracy.md, and its figure, from results.

python examples/paper/accuracy_page.py --results runs/arithmetic/results.jsonl

Without --results they are written anew from the committed ones, docs/paper/accuracy.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.pyplot as plt

from examples.arithmetic import style
from examples.arithmetic.pages import fill, markdown
from examples.arithmetic.results import Estimate, Line, Results, estimate, over_seeds, paired_over_problems
from examples.arithmetic.trials import PAIRS_A_STEP, RATE, STEPS, Trial
from examples.paper import accuracy
from examples.paper.accuracy import BETA, BETAS, LOSSES

DOCS = Path(__file__).parents[2] / "docs" / "paper"
NAMES = {"dpo": "DPO", "ipo": "IPO", "dpop": "DPOP"}
BASELINES: dict[str, Trial] = {
    "DPO + SFT (`nll_weight: 1`)": accuracy.dpo_and_sft(0),
    "SFT on the right solutions": accuracy.sft(0),
    "CPO, β 0.1": accuracy.cpo(0),
    f"DPO at a rate of {accuracy.LOWER_RATE:g}": accuracy.slow_dpo(0),
    "DPO, ended at DPOP's margin": accuracy.early_dpo(0),
}


class Page:
    """What the page says, computed from lines of results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.start = results.by_name()["start"]

    def blocks(self) -> dict[str, str]:
        by_beta = {f"{NAMES[loss]}, β {beta:g}": accuracy.of(loss, 0, beta=beta) for beta in BETAS for loss in LOSSES}
        beside = {f"{NAMES[loss]}, β {BETA:g}": accuracy.of(loss, 0) for loss in ("dpop", "dpo")}
        high = {f"{NAMES[loss]}, β {BETA:g}": accuracy.of(loss, 0, edit="high") for loss in LOSSES}
        return {
            "facts": self.facts(),
            "low": self.table(by_beta),
            "verdict": self.verdict(),
            "baselines": self.table({**beside, **BASELINES}),
            "against": self.against(),
            "high": self.table(high),
        }

    def facts(self) -> str:
        taught = self.start["sft"][-1]
        return (
            f"The SFT stage ended after {taught['steps']} steps, where the model solved {taught['solved']} of the "
            f"{taught['of']} problems that it asks. Of the {self.start['problems']} held-out problems it solves "
            f"**{self.start['accuracy']:.1%}**: the accuracy before. Trials take {STEPS} steps of {PAIRS_A_STEP} pairs "
            f"at a peak rate of {RATE:g}, as the runs of [the other page](README.md) do."
        )

    def lines(self, one: Trial) -> list[Line]:
        return self.results.of_kind(one.kind)

    def changes(self, lines: Sequence[Line]) -> Estimate:
        return estimate([line["accuracy"] - self.start["accuracy"] for line in lines])

    def table(self, kinds: dict[str, Trial]) -> str:
        header = ["", "accuracy after, %", "change, points", "chosen minus reference, nats an answer"]
        header += ["after the edit, nats a token", "margin, nats", "steps", "seeds"]
        rows = []
        for label, one in kinds.items():
            if lines := self.lines(one):
                measured = {
                    name: estimate([line[name] for line in lines])
                    for name in ("accuracy", "chosen_minus_reference", "after_edit", "margin")
                }
                rows.append(
                    [
                        label,
                        measured["accuracy"].text(1, percent=True),
                        self.changes(lines).text(1, percent=True, signed=True),
                        measured["chosen_minus_reference"].text(1, signed=True),
                        measured["after_edit"].text(2, signed=True),
                        measured["margin"].text(1),
                        ", ".join(dict.fromkeys(str(line["steps"]) for line in lines)),
                        str(len(lines)),
                    ]
                )
        return markdown(header, rows)

    def verdict(self) -> str:
        pairs = {f"β {beta:g}": (accuracy.of("dpop", 0, beta=beta), accuracy.of("dpo", 0, beta=beta)) for beta in BETAS}
        pairs[f"β {BETA:g}, high edit distance"] = tuple(accuracy.of(loss, 0, edit="high") for loss in ("dpop", "dpo"))  # type: ignore[assignment]
        return self.comparison("DPOP minus DPO", pairs)

    def against(self) -> str:
        dpop = accuracy.of("dpop", 0)
        return self.comparison("DPOP minus", {label: (dpop, other) for label, other in BASELINES.items()})

    def comparison(self, corner: str, pairs: dict[str, tuple[Trial, Trial]]) -> str:
        rows = []
        for label, (one, other) in pairs.items():
            ours, theirs = self.lines(one), self.lines(other)
            if {line["seed"] for line in ours} & {line["seed"] for line in theirs}:
                problems, seeds = paired_over_problems(ours, theirs), over_seeds(ours, theirs, "accuracy")
                texts = [found.text(1, percent=True, signed=True) for found in (problems, seeds)]
                rows.append([label, *texts, sign(problems), sign(seeds)])
        header = [corner, "points, interval of the problems", "points, interval of the seeds"]
        return markdown([*header, "by problems", "by seeds"], rows)

    def draw(self, path: Path) -> None:
        style.begin()
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", sharex=True)
        low = {f"{NAMES[loss]} β {beta:g}": accuracy.of(loss, 0, beta=beta) for loss in LOSSES for beta in BETAS}
        others = {label.replace("`", ""): one for label, one in BASELINES.items()}
        for axes, kinds, title in ((left, low, "Low edit distance"), (right, others, "Baselines, low edit distance")):
            done = {label: lines for label, one in kinds.items() if (lines := self.lines(one))}
            found = [estimate([100 * line["accuracy"] for line in lines]) for lines in done.values()]
            style.dots(axes, list(done), found, colour=style.LOW, label="after", shift=0)
            axes.axvline(100 * self.start["accuracy"], color=style.GREY, linestyle="--", label="before")
            axes.set_title(title)
            style.finish(axes, x="held-out problems solved, %", y="")
        left.legend(frameon=False, fontsize=9)
        style.save(figure, path)


def sign(found: Estimate) -> str:
    if not abs(found.mean) > found.half:
        return "not shown"
    return "higher" if found.mean > 0 else "lower"


def committed() -> Results:
    return Results(DOCS / "accuracy.jsonl")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="take these into the committed ones first")
    given = parser.parse_args()
    kept = committed()
    if given.results:
        Results(given.results).keep(["start", *(one.name for one in accuracy.trials())], kept.path)
    page = Page(kept)
    fill(DOCS / "accuracy.md", page.blocks())
    page.draw(DOCS / "accuracy.svg")
