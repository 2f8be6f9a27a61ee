"""Writes the computed parts of docs/paper/accuracy.md, and its figure, from results.

python examples/paper/accuracy_page.py --results runs/arithmetic/results.jsonl

Without --results they are written anew from the committed ones, docs/paper/accuracy.jsonl.
"""

import math
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.pyplot as plt

from examples.arithmetic import style
from examples.arithmetic.pages import fill, markdown, results_to_show, said_of_done
from examples.arithmetic.problems import low_edit_pair
from examples.arithmetic.results import Estimate, Line, Results, estimate, over_seeds, paired_over_problems
from examples.arithmetic.stage import Stage
from examples.arithmetic.trials import PAIRS_A_STEP, RATE, STEPS, Trial
from examples.paper import accuracy
from examples.paper.accuracy import BETA, BETAS, LOSSES
from megatron_dpop.data.makers.corrupt import trailing_zeros

DOCS = Path(__file__).parents[2] / "docs" / "paper"
NAMES = {"dpo": "DPO", "ipo": "IPO", "dpop": "DPOP"}
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
            "verdict": self.verdict(),
            "baselines": self.table({**beside, **BASELINES}),
            "against": self.against(),
            "high": self.table(high),
        }

    def facts(self) -> str:
        taught = self.start["sft"]
        return (
            f"The SFT stage takes {taught['steps']} steps of 32 solutions at a peak rate of {taught['rate']:g}; the "
            f"model then solves {taught['solved']} of {taught['of']} problems of the stage's own. Of the "
            f"{self.start['problems']} held-out problems it solves **{self.start['accuracy']:.1%}**: the accuracy "
            f"before. Trials take {STEPS} steps of {PAIRS_A_STEP} pairs, as the runs of [the other page](README.md) "
            f"do, at a peak rate of {RATE:g}: theirs, the paper's, is {accuracy.LOWER_RATE:g}. "
            + said_of_done(self.done(), len(accuracy.trials()))
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

    def verdict(self) -> str:
        pairs = {f"β {beta:g}": (accuracy.of("dpop", 0, beta=beta), accuracy.of("dpo", 0, beta=beta)) for beta in BETAS}
        pairs[f"β {BETA:g}, high edit distance"] = (
            accuracy.of("dpop", 0, edit="high"),
            accuracy.of("dpo", 0, edit="high"),
        )
        return self.comparison("DPOP minus DPO", pairs)

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
            found = [estimate([100 * line["accuracy"] for line in lines]) for lines in done.values()]
            style.dots(axes, list(done), found, colour=style.LOW, label="after", shift=0)
            axes.axvline(100 * self.start["accuracy"], color=style.GREY, linestyle="--", label="before")
            axes.set_title(title)
            style.finish(axes, x="held-out problems solved, %", y="")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        style.save(figure, path)


def common_seeds(ours: Sequence[Line], theirs: Sequence[Line]) -> set[int]:
    return {line["seed"] for line in ours} & {line["seed"] for line in theirs}


def mean(lines: Sequence[Line], name: str) -> Estimate:
    return estimate([line[name] for line in lines])


def corruption() -> str:
    """What the numbers of low-edit pairs look like, right and wrong."""
    problems = Stage(Path()).problems["pairs"]
    made = [low_edit_pair(problem, random.Random(f"train {at}")) for at, problem in enumerate(problems)]
    changed = [changed_number(pair.chosen, pair.rejected) for pair in made if pair is not None]
    shares = {
        "zeros": sum(trailing_zeros(right) == trailing_zeros(wrong) for right, wrong in changed),
        "digits": sum(len(str(right)) == len(str(wrong)) for right, wrong in changed),
        "larger": sum(wrong > right for right, wrong in changed),
    }
    zeros, digits, larger = (f"{count / len(changed):.0%}" for count in shares.values())
    return (
        f"Of the {len(changed)} wrong numbers {zeros} end in as many zeros as the right one, {digits} have as many "
        f"digits, {larger} are larger: their look does not tell which is wrong. That each pair differs in one number "
        "of the working, and never in the final answer, is its form, and all that is shown here is shown of it."
    )


def changed_number(chosen: str, rejected: str) -> tuple[int, int]:
    both = zip(re.findall(r"\d+", chosen), re.findall(r"\d+", rejected), strict=True)
    ((right, wrong),) = [(int(one), int(other)) for one, other in both if one != other]
    return right, wrong


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
