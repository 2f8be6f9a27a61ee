"""Writes the computed parts of docs/arena.md, and its two figures, from results.

python examples/arena/page.py --results runs/arithmetic/results.jsonl

Without --results they are written anew from the committed ones, docs/arena.jsonl.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from examples.arena.contest import EDITS, PROBLEMS, SEEDS, entry, trials
from examples.arithmetic import style
from examples.arithmetic.pages import fill, markdown, results_to_show, said_of_done, said_of_time
from examples.arithmetic.results import Estimate, Line, Results, estimate
from examples.arithmetic.trials import PAIRS_A_STEP, RATE, STEPS
from megatron_dpop.config.losses import PAIR_LOSSES

DOCS = Path(__file__).parents[2] / "docs"
MEASURED = ("accuracy", "chosen_minus_reference", "after_edit", "margin", "kl")


class Page:
    """What the page says, computed from lines of results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.start = first_problems(results.by_name()["start"])
        self.lines: dict[str, dict[str, list[Line]]] = {}  # by edit distance, then by loss
        for edit in EDITS:
            found = {loss: results.of_kind(entry(loss, edit, 0).kind) for loss in PAIR_LOSSES}
            self.lines[edit] = {loss: list(map(first_problems, lines)) for loss, lines in found.items() if lines}

    def blocks(self) -> dict[str, str]:
        return {"facts": self.facts(), "kept": self.kept(), **{edit: self.table(edit) for edit in EDITS}}

    def facts(self) -> str:
        found = [line for edit in EDITS for lines in self.lines[edit].values() for line in lines]
        wanted = len(PAIR_LOSSES) * len(EDITS) * len(SEEDS)
        timed = [line for line in found if line["problems"] == PROBLEMS]  # the others answered more
        return (
            f"{len(PAIR_LOSSES)} losses, {STEPS} steps of {PAIRS_A_STEP} pairs at a peak rate of {RATE:g} for each. "
            f"Before, the model solves {self.start['accuracy']:.0%} of {PROBLEMS} held-out problems. "
            f"{said_of_done(len(found), wanted)} {said_of_time(timed, wanted)}"
        )

    def measured(self, edit: str, name: str) -> dict[str, Estimate]:
        return {loss: estimate([line[name] for line in lines]) for loss, lines in self.lines[edit].items()}

    def table(self, edit: str) -> str:
        header = ["loss", "β", f"solved of {PROBLEMS}, %", "chosen minus reference, nats an answer"]
        header += ["after the edit, nats a token", "margin, nats", "KL, nats a token", "seeds"]
        columns = {name: self.measured(edit, name) for name in MEASURED}
        order = sorted(self.lines[edit], key=lambda loss: -columns["accuracy"][loss].mean)
        rows = [
            [
                f"`{loss}`",
                f"{PAIR_LOSSES[loss]().beta:g}",
                columns["accuracy"][loss].text(1, percent=True),
                columns["chosen_minus_reference"][loss].text(1, signed=True),
                columns["after_edit"][loss].text(2, signed=True),
                columns["margin"][loss].text(1),
                columns["kl"][loss].text(3),
                str(len(self.lines[edit][loss])),
            ]
            for loss in order
        ]
        return markdown(header, rows)

    def kept(self) -> str:
        """Which losses keep the right answer, by the interval of the seeds."""
        rows = []
        for edit in EDITS:
            found = self.measured(edit, "chosen_minus_reference")
            up = [loss for loss, one in found.items() if one.mean - one.half > 0]
            down = [loss for loss, one in found.items() if one.mean + one.half < 0]
            rest = [loss for loss in found if loss not in (*up, *down)]
            rows.append([edit, *(", ".join(f"`{loss}`" for loss in some) or "none" for some in (up, down, rest))])
        return markdown(["edit distance", "more likely than before", "less likely", "not decided by these seeds"], rows)

    def draw(self, folder: Path) -> None:
        style.begin()
        figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
        kept = {edit: self.measured(edit, "chosen_minus_reference") for edit in EDITS}
        order = sorted(kept["low"], key=lambda loss: -kept["low"][loss].mean)
        for edit, shift in zip(EDITS, (0.14, -0.14), strict=True):
            label = f"{edit} edit distance"
            style.dots(axes, order, kept[edit], colour=style.OF_EDITS[edit], label=label, shift=shift)
        axes.axvline(0, color=style.GREY, linewidth=1)
        axes.legend(frameon=False, fontsize=9)
        style.finish(axes, x="right answers minus the reference, nats an answer", y="")
        style.save(figure, folder / "arena_kept.svg")

        figure, both_axes = plt.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained", sharey=True)
        for one, edit in zip(both_axes, EDITS, strict=True):
            scatter(one, self.measured(edit, "kl"), self.measured(edit, "accuracy"), style.OF_EDITS[edit])
            one.axhline(100 * self.start["accuracy"], color=style.GREY, linestyle="--")
            one.set_xscale("log")
            one.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            one.xaxis.set_major_formatter("{x:g}")
            one.xaxis.set_minor_formatter("")
            one.set_title(f"{edit.capitalize()} edit distance")
            style.finish(one, x="KL to the reference, nats a token", y=f"solved of {PROBLEMS}, %")
        style.save(figure, folder / "arena_price.svg")


def scatter(axes: plt.Axes, kl: dict[str, Estimate], accuracy: dict[str, Estimate], colour: str) -> None:
    for loss, one in accuracy.items():
        at = (kl[loss].mean, 100 * one.mean)
        axes.errorbar(*at, yerr=100 * style.half(one), fmt="o", color=colour, markersize=4, elinewidth=0.7)
        axes.annotate(loss, at, (4, 3), textcoords="offset points", fontsize=7)


def first_problems(line: Line) -> Line:
    """Some trials, the accuracy experiment's, answered more problems than the arena asks."""
    solved = line["solved"][:PROBLEMS]
    return {**line, "solved": solved, "accuracy": solved.count("1") / len(solved)}


def committed() -> Results:
    return Results(DOCS / "arena.jsonl")


if __name__ == "__main__":
    every = ["start", *(one.name for one in trials(list(PAIR_LOSSES)))]
    page = Page(results_to_show(__doc__ or "", committed(), every))
    fill(DOCS / "arena.md", page.blocks())
    page.draw(DOCS / "images")
