"""Writes the computed parts of docs/paper/accuracy.md, and its figure, from results.

python examples/paper/accuracy_page.py --results runs/arithmetic/results.jsonl

Without --results they are written anew from the committed ones, docs/paper/accuracy.jsonl.
"""

import math
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.pyplot as plt

from examples.arithmetic import style
from examples.arithmetic.pages import fill, markdown, results_to_show, said_of_done, said_of_time
from examples.arithmetic.results import Estimate, Line, Results, estimate, over_seeds, paired_over_problems
from examples.arithmetic.trials import PAIRS_A_STEP, RATE, STEPS, Trial
from examples.paper import accuracy
from examples.paper.accuracy import BETA, BETAS, LOSSES
from examples.paper.corruption import corruption

DOCS = Path(__file__).parents[2] / "docs" / "paper"
NAMES = {"dpo": "DPO", "ipo": "IPO", "dpop": "DPOP"}
# What the paper's figures 2 and 4 say of each, and whether that is a rise.
CLAIMS = {
    "dpo": ("DPO lowers it", False),
    "ipo": ("IPO does not improve it", False),
    "dpop": ("DPOP raises it", True),
}
BASELINES: dict[str, Trial] = {
    "DPO + SFT (`nll_weight: 1`)": accuracy.dpo_and_sft(0),
    "SFT on the right solutions": accuracy.sft(0),
    "CPO, β 0.1": accuracy.cpo(0),
    f"DPO at the paper's rate, {accuracy.LOWER_RATE:g}": accuracy.slow_dpo(0),
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
            "claims": self.claims(),
            "verdict": self.verdict(),
            "baselines": self.table({**beside, **BASELINES}),
            "against": self.against(),
            "high": self.table(high),
        }

    def facts(self) -> str:
        taught, wanted = self.start["sft"], len(accuracy.trials())
        return (
            f"The SFT stage takes {taught['steps']} steps of 32 solutions at a peak rate of {taught['rate']:g}; the "
            f"model then solves {taught['solved']} of {taught['of']} problems of the stage's own. Of the "
            f"{self.start['problems']} held-out problems it solves **{self.start['accuracy']:.1%}**: the accuracy "
            f"before. Trials take {STEPS} steps of {PAIRS_A_STEP} pairs, as the runs of [the other page](README.md) "
            f"do, at a peak rate of {RATE:g}: theirs, the paper's, is {accuracy.LOWER_RATE:g}. "
            f"{said_of_done(self.done(), wanted)} {said_of_time(self.results.lines(), wanted)}"
        )

    def done(self) -> int:
        return sum(not self.results.lacks(one.name, one.problems) for one in accuracy.trials())

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

    def claims(self) -> str:
        """The paper's claims of low edit distance, by the interval of the seeds."""
        found: list[tuple[str, float, bool, Estimate]] = []
        for (loss, (claim, is_up)), beta in product(CLAIMS.items(), BETAS):
            if lines := self.lines(accuracy.of(loss, 0, beta=beta)):
                found.append((claim, beta, is_up, self.changes(lines)))
        for beta in BETAS:
            ours, theirs = (self.lines(accuracy.of(loss, 0, beta=beta)) for loss in ("dpop", "dpo"))
            if common_seeds(ours, theirs):
                found.append(("DPOP does better than DPO", beta, True, over_seeds(ours, theirs, "accuracy")))
        rows = [
            [claim, f"{beta:g}", one.text(1, percent=True, signed=True), state(one, is_up), str(one.count)]
            for claim, beta, is_up, one in found
        ]
        return markdown(["the paper of this accuracy", "β", "here, points, interval of the seeds", "", "seeds"], rows)

    def verdict(self) -> str:
        pairs = {}
        for one, other in (("dpop", "dpo"), ("dpop", "ipo"), ("ipo", "dpo")):
            for edit, beta in (*(("low", beta) for beta in BETAS), ("high", BETA)):
                label = (
                    f"{NAMES[one]} minus {NAMES[other]}, β {beta:g}{', high edit distance' if edit == 'high' else ''}"
                )
                both = (accuracy.of(loss, 0, beta=beta, edit=edit) for loss in (one, other))
                pairs[label] = (next(both), next(both))
        return self.comparison("", pairs)

    def against(self) -> str:
        dpop = accuracy.of("dpop", 0)
        return self.comparison("DPOP minus", {label: (dpop, other) for label, other in BASELINES.items()})

    def comparison(self, corner: str, pairs: dict[str, tuple[Trial, Trial]]) -> str:
        rows = []
        for label, (one, other) in pairs.items():
            ours, theirs = self.lines(one), self.lines(other)
            if seeds_of_both := common_seeds(ours, theirs):
                problems, seeds = paired_over_problems(ours, theirs), over_seeds(ours, theirs, "accuracy")
                texts = [found.text(1, percent=True, signed=True) for found in (problems, seeds)]
                rows.append([label, *texts, sign(problems), sign(seeds), str(len(seeds_of_both))])
        header = [corner, "points, interval of the problems", "points, interval of the seeds"]
        return markdown([*header, "by problems", "by seeds", "seeds"], rows)

    def sceptic(self) -> str:
        """The questions of docs/paper/README.md, answered."""
        dpop, early = accuracy.of("dpop", 0), accuracy.early_dpo(0)
        ours, theirs = self.lines(dpop), self.lines(early)
        before = self.start["accuracy"]
        alone = 1.96 * math.sqrt(before * (1 - before) / self.start["problems"])
        return "\n".join(
            [
                f"- **Is DPOP more than SFT + DPO?** Accuracy of DPOP minus that of DPO with `nll_weight: 1`: "
                f"{self.said(dpop, accuracy.dpo_and_sft(0))}. Minus SFT on the right solutions alone: "
                f"{self.said(dpop, accuracy.sft(0))}.",
                f"- **And than DPO at an equal margin?** {self.equal_margin(ours, theirs)} Accuracy of DPOP minus that "
                f"of this DPO: {self.said(dpop, early)}; minus that of DPO at the paper's rate: "
                f"{self.said(dpop, accuracy.slow_dpo(0))}.",
                f"- **How wide are the bars?** {len(ours)} seeds tell DPOP's accuracy to "
                f"±{100 * mean(ours, 'accuracy').half:.1f} points; {self.start['problems']} problems tell that of one "
                f"model to ±{100 * alone:.1f}. There is one model and one SFT stage: of others these bars say nothing.",
                f"- **Is it the corruption's form?** {corruption()}",
            ]
        )

    def equal_margin(self, ours: Sequence[Line], theirs: Sequence[Line]) -> str:
        seeds = common_seeds(ours, theirs)
        ours, theirs = ([line for line in some if line["seed"] in seeds] for some in (ours, theirs))
        if not seeds:
            return "DPO that ends at DPOP's margin was not run yet."
        ended = ", ".join(str(line["steps"]) for line in theirs)
        margin = mean(ours, "margin").text(1)
        moved, kept = (mean(some, "chosen_minus_reference").text(1, signed=True) for some in (theirs, ours))
        return (
            f"DPO reaches the margin at which DPOP ends, {margin} nats, after {ended} of {STEPS} steps (a seed each), "
            f"its right answers {moved} nats from the reference in place of DPOP's {kept}."
        )

    def said(self, one: Trial, other: Trial) -> str:
        if not common_seeds(self.lines(one), self.lines(other)):
            return "not run yet"
        problems = paired_over_problems(self.lines(one), self.lines(other))
        seeds = over_seeds(self.lines(one), self.lines(other), "accuracy")
        words = [found.text(1, percent=True, signed=True) for found in (problems, seeds)]
        return f"{words[0]} points ({sign(problems)}; {words[1]} with the seeds' interval, {sign(seeds)})"

    def draw(self, path: Path) -> None:
        style.begin()
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", sharex=True)
        low = {f"{NAMES[loss]} β {beta:g}": accuracy.of(loss, 0, beta=beta) for loss in LOSSES for beta in BETAS}
        others = {label.replace("`", ""): one for label, one in BASELINES.items()}
        for axes, kinds, title in ((left, low, "Low edit distance"), (right, others, "Baselines, low edit distance")):
            done = {label: lines for label, one in kinds.items() if (lines := self.lines(one))}
            found = {label: estimate([100 * line["accuracy"] for line in lines]) for label, lines in done.items()}
            style.dots(axes, list(kinds), found, colour=style.OF_EDITS["low"], label="after")
            axes.axvline(100 * self.start["accuracy"], color=style.GREY, linestyle="--", label="before")
            axes.set_title(title)
            style.finish(axes, x="held-out problems solved, %", y="")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        style.save(figure, path)


def common_seeds(ours: Sequence[Line], theirs: Sequence[Line]) -> set[int]:
    return {line["seed"] for line in ours} & {line["seed"] for line in theirs}


def mean(lines: Sequence[Line], name: str) -> Estimate:
    return estimate([line[name] for line in lines])


def state(found: Estimate, is_up: bool) -> str:
    """Says of a claim that the accuracy rises, or falls, whether it holds."""
    if not abs(found.mean) > found.half:
        return "not shown"
    return "holds" if (found.mean > 0) == is_up else "does not hold"


def sign(found: Estimate) -> str:
    if not abs(found.mean) > found.half:
        return "not shown"
    return "higher" if found.mean > 0 else "lower"


def committed() -> Results:
    return Results(DOCS / "accuracy.jsonl")


if __name__ == "__main__":
    page = Page(results_to_show(__doc__ or "", committed(), ["start", *(one.name for one in accuracy.trials())]))
    fill(DOCS / "accuracy.md", page.blocks())
    fill(DOCS / "README.md", {"sceptic": page.sceptic()})
    page.draw(DOCS / "accuracy.svg")
