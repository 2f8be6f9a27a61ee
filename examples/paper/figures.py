"""What docs/paper/ shows, drawn from the runs: log-probabilities of training and validation, and token by token.

python examples/paper/figures.py --root runs/paper --output docs/paper
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from experiments import GROUPS, Experiment, dpo, dpop, ipo
from matplotlib.axes import Axes

from megatron_dpop.pages.colours import OTHERS, light

CHOSEN, GAP = "logps/chosen", "logps/chosen_minus_reference"
SPANS = {"before": "before the edit", "first": "first differing token", "after": "after the edit"}
SIDES = ("chosen", "rejected")


class Results:
    """The finished runs under a root; those that are not are left out of the figures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokens: dict[str, dict[str, Any]] = {}  # by kind of pairs, then by run's name
        for path in sorted((root / "analysis").glob("*.json")):
            self.tokens[path.stem] = {model["name"]: model for model in json.loads(path.read_text())["models"]}

    def has(self, experiment: Experiment) -> bool:
        return experiment.name in self.tokens.get(experiment.pairs, {})

    def series(self, experiment: Experiment, name: str) -> tuple[list[int], list[float]]:
        lines = (self.root / "runs" / experiment.name / "metrics.jsonl").read_text().splitlines()
        points = [(line["step"], line[name]) for line in map(json.loads, lines) if name in line]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, experiment: Experiment, name: str) -> float:
        return self.series(experiment, name)[1][-1]

    def of_tokens(self, experiment: Experiment) -> dict[str, Any]:
        return self.tokens[experiment.pairs][experiment.name]

    def reference(self, pairs: str) -> dict[str, Any]:
        return self.tokens[pairs]["reference"]


def label(one: Experiment) -> str:
    penalty = "" if one.penalty is None else f", λ {one.penalty:g}"
    return f"{one.loss.upper()}, β {one.beta:g}{penalty}"


Coloured = Sequence[tuple[Experiment, str]]


def coloured(experiments: Sequence[Experiment]) -> list[tuple[Experiment, str]]:
    """A loss at the paper's values has its colour of every page; at other values one that no loss has."""
    own = {one for kind in ("low-edit", "high-edit") for one in (dpo(kind), dpop(kind), ipo(kind))}
    further = iter(OTHERS)
    return [(one, light(one.loss) if one in own else next(further)[0]) for one in experiments]


def curves(results: Results, experiments: Coloured, title: str) -> plt.Figure:
    """Left the log-probability of the chosen answers over steps, validation; right the same against the reference,
    training (thin: each step has other pairs) and validation (bold)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for one, colour in experiments:
        left.plot(*results.series(one, f"validation/{CHOSEN}"), "o-", color=colour, label=label(one))
        right.plot(*results.series(one, GAP), color=colour, linewidth=1, alpha=0.55)
        right.plot(*results.series(one, f"validation/{GAP}"), "o-", color=colour, label=label(one))
    left.set_title("Chosen answers, validation")
    right.set_title("Minus the reference: validation (bold), training (thin)")
    for axes in (left, right):
        finish(axes, x="step", y="nats an answer")
    right.axhline(0, color="#8b929c", linewidth=1)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontweight="bold")
    return figure


def token_bars(results: Results, experiments: Coloured, title: str) -> plt.Figure:
    """Mean log-probability of tokens before, at and after the first differing one: the paper's figure 3."""
    pairs = experiments[0][0].pairs
    bars = [("reference", results.reference(pairs), light("reference"))]
    bars += [(label(one), results.of_tokens(one), colour) for one, colour in experiments]
    figure, both = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    width = 0.8 / len(bars)
    for axes, side in zip(both, SIDES, strict=True):
        for at, (text, found, colour) in enumerate(bars):
            values = [found[side]["spans"][span]["value"] or 0.0 for span in SPANS]
            places = [place + (at - (len(bars) - 1) / 2) * width for place in range(len(SPANS))]
            axes.bar(places, values, width, color=colour, label=text)
        axes.set_xticks(range(len(SPANS)), SPANS.values())
        axes.set_title(f"{side.capitalize()} answers")
        finish(axes, x="", y="mean nats a token")
    both[0].legend(frameon=False, fontsize=9, loc="lower left")
    figure.suptitle(title, fontweight="bold")
    return figure


def by_position(results: Results, experiments: Coloured, title: str) -> plt.Figure:
    """Mean log-probability against the reference, by distance from the first differing token."""
    pairs = experiments[0][0].pairs
    offsets = json.loads((results.root / "analysis" / f"{pairs}.json").read_text())["offsets"]
    figure, both = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for axes, side in zip(both, SIDES, strict=True):
        for one, colour in experiments:
            points = [
                (offset, here["value"] - base["value"])
                for offset, here, base in zip(
                    offsets,
                    results.of_tokens(one)[side]["positions"],
                    results.reference(pairs)[side]["positions"],
                    strict=True,
                )
                if here["count"] >= 5
            ]
            axes.plot(*zip(*points, strict=True), color=colour, label=label(one), linewidth=1.5)
        axes.axhline(0, color="#8b929c", linewidth=1)
        axes.axvline(0, color="#8b929c", linewidth=1, linestyle=":")
        axes.set_title(f"{side.capitalize()} answers")
        finish(axes, x="tokens from the first differing one", y="nats a token, minus the reference")
    both[0].legend(frameon=False, fontsize=9, loc="lower left")
    figure.suptitle(title, fontweight="bold")
    return figure


def finish(axes: Axes, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color="#e2e3e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: Results, output: Path) -> None:
    low, high = ([dpo(kind), dpop(kind), ipo(kind)] for kind in ("low-edit", "high-edit"))
    wanted = {
        "low_edit": (curves, low, "Low edit distance: worked problems"),
        "low_edit_tokens": (token_bars, low, "Low edit distance: mean log-probability a token, validation"),
        "low_edit_positions": (by_position, low, "Low edit distance: by position"),
        "high_edit": (curves, high, "High edit distance: multiple choice"),
        "high_edit_tokens": (token_bars, high, "High edit distance: mean log-probability a token, validation"),
        "beta": (curves, GROUPS["beta"], "DPO at three β, low edit distance"),
        "lambda": (curves, GROUPS["lambda"], "DPOP at four λ (DPO is λ 0), low edit distance"),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, (make, experiments, title) in wanted.items():
        finished = [(one, colour) for one, colour in coloured(experiments) if results.has(one)]
        if len(finished) < len(experiments):
            print(f"{name}: {len(finished)} of {len(experiments)} runs are finished")
        if len(finished) > 1:
            figure = make(results, finished, title)
            figure.savefig(output / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


def rows(results: Results) -> list[dict[str, Any]]:
    """A line for each finished run: what the tables of docs/paper/ hold."""
    known = dict.fromkeys(one for group in GROUPS.values() for one in group)
    found = []
    for one in filter(results.has, known):
        tokens = results.of_tokens(one)
        found.append(
            {
                "run": one.name,
                "accuracy": results.last(one, "validation/rewards/accuracies"),
                "margin": results.last(one, "validation/rewards/margins"),
                "chosen": results.last(one, f"validation/{CHOSEN}"),
                "chosen_minus_reference": results.last(one, f"validation/{GAP}"),
                "rejected": results.last(one, "validation/logps/rejected"),
                **{f"{side}_{span}": tokens["minus_reference"][side][span] for side in SIDES for span in SPANS},
                "chosen_fell_after_edit": tokens["chosen_fell_after_edit"],
            }
        )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Writes a table in Markdown."""
    columns = {
        "accuracy": "accuracy",
        "margin": "margin",
        "chosen_minus_reference": "chosen minus reference, nats an answer",
        "chosen_before": "before, nats a token",
        "chosen_first": "first differing",
        "chosen_after": "after",
        "chosen_fell_after_edit": "answers that fell after the edit",
    }
    lines = [f"| run | {' | '.join(columns.values())} |", f"| --- |{' ---: |' * len(columns)}"]
    for row in found:
        cells = [f"{row[key]:.0%}" if key.endswith("edit") else f"{row[key]:.2f}" for key in columns]
        lines.append(f"| {row['run']} | {' | '.join(cells)} |".replace("-0.00", "0.00"))
    return "\n".join(lines)


if __name__ == "__main__":
    mpl.rcParams.update({"svg.hashsalt": "paper", "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/paper"))
    parser.add_argument("--output", type=Path, default=Path("docs/paper"))
    given = parser.parse_args()
    results = Results(given.root)
    draw(results, given.output)
    summary = rows(results)
    (given.output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(table(summary))
