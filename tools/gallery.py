"""Draws docs/images/gallery/: what runs look like that are well, and that are ill. Tiny runs, minutes on two cores.

python -m tools.gallery --root runs/gallery

A random model of 0.4 million weights learns to work out sums (SFT); from there each run of RUNS goes its way.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dpop_base.metric_names import ACCURACY, CHOSEN_MINUS_REFERENCE, LOSS, MARGIN, VALIDATION
from examples.arithmetic.problems import Problem, low_edit_pair
from examples.recipes.tiny import write_model
from megatron_dpop import train
from megatron_dpop.config.load import flatten
from megatron_dpop.health.monitor import Finding, findings
from megatron_dpop.pages.colours import REFERENCE, light
from megatron_dpop.report.catalogue import describe

Metrics = Mapping[int, Mapping[str, float]]  # by step

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "gallery"
LARGEST_TERM = 12
TAUGHT, PAIRS, HELD_OUT = 2400, 600, 64  # problems
FEW = 24  # pairs that are learnt by heart
SHAPE = {"model_type": "llama", "hidden_size": 96, "intermediate_size": 192}
FORM = {"chat_template": "none", "max_tokens": 128, "row_tokens": 1024}
SFT_STEPS, STEPS, VALIDATE_EVERY = 200, 80, 10


@dataclass(frozen=True)
class GalleryRun:
    """One run of the gallery: what it is to show, and what of its config makes it so."""

    name: str
    loss: str
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pairs: str = "pairs"  # file of its training pairs
    panels: Sequence[str] = (CHOSEN_MINUS_REFERENCE, ACCURACY, MARGIN)
    beside_healthy: bool = True

    def config(self, root: Path) -> dict[str, Any]:
        config: dict[str, Any] = {
            "model": {"path": str(root / "taught" / "hf")},
            "precision": {"params": "fp32"},
            "data": {"train": str(root / f"{self.pairs}.jsonl"), "validation": str(root / "held_out.jsonl"), **FORM},
            "loss": {"name": self.loss, "beta": 0.3},
            "optimizer": {"lr": 2.0e-4, "schedule": "constant", "warmup_steps": 4},
            "train": {"steps": STEPS, "global_batch_pairs": 8, "validate_every": VALIDATE_EVERY},
            "checkpoint": {"every": 1000, "export_hf": False},
            "logging": {"tensorboard": False},
            "run": {"dir": str(root / self.name)},
        }
        for section, values in self.overrides.items():
            config[section] = {**config[section], **values}
        return config


RUNS = (
    GalleryRun("healthy", "dpop"),
    GalleryRun("chosen_below_reference", "dpo"),
    GalleryRun("accuracy_at_half", "dpop", pairs="shuffled", panels=(ACCURACY, MARGIN, CHOSEN_MINUS_REFERENCE)),
    GalleryRun(
        "validation_parting",
        "dpo",
        {"optimizer": {"lr": 1.0e-3}},
        pairs="few",
        panels=(LOSS, ACCURACY, CHOSEN_MINUS_REFERENCE),
        beside_healthy=False,  # which has another loss, and another data set to fit
    ),
)
MACHINE_S = "throughput_drop"  # tells of what else runs on the machine that draws the gallery


def write_files(root: Path) -> None:
    """Writes the model, and problems with their solutions; each is drawn once."""
    write_model(root / "model", SHAPE)
    draw = random.Random(0)
    sizes = range(2, LARGEST_TERM + 1)
    sums = product(sizes, *2 * [[*sizes, *(-size for size in sizes)]])
    problems = [one for terms in sums if min((one := Problem(terms)).results()) > 0]
    draw.shuffle(problems)
    taught = [{"prompt": one.question, "completion": one.solution()} for one in problems[:TAUGHT]]
    _write(root / "taught.jsonl", taught)
    made = (low_edit_pair(one, draw) for one in problems[TAUGHT:])
    pairs = [asdict(pair) for pair in islice(filter(None, made), PAIRS + HELD_OUT)]
    _write(root / "held_out.jsonl", pairs[:HELD_OUT])
    _write(root / "pairs.jsonl", pairs[HELD_OUT:])
    _write(root / "few.jsonl", pairs[HELD_OUT : HELD_OUT + FEW])
    _write(root / "shuffled.jsonl", [_turned(pair) if draw.random() < 0.5 else pair for pair in pairs[HELD_OUT:]])


def _turned(pair: dict[str, Any]) -> dict[str, Any]:
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def teach(root: Path) -> None:
    """Trains the model to work sums out; nothing where that is done."""
    config = {
        **GalleryRun("taught", "sft").config(root),
        "model": {"path": str(root / "model")},
        "data": {"train": str(root / "taught.jsonl"), **FORM},
        "loss": {"name": "sft"},
        "optimizer": {"lr": 3.0e-3},
        "train": {"steps": SFT_STEPS, "global_batch_pairs": 32},
        "checkpoint": {"every": SFT_STEPS},
    }
    train(config)


def metrics_of(root: Path, run: GalleryRun) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (root / run.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line.pop("step"): line for line in lines}


def found_in(run: GalleryRun, metrics: Mapping[int, Mapping[str, float]]) -> list[Finding]:
    """Returns what the health rules see in a run's metrics, as they do while it runs; not what its machine does."""
    found = findings(flatten(run.config(Path())), metrics.items())
    return sorted((one for one in found if one.rule != MACHINE_S), key=lambda one: one.rule != run.name)


def draw(run: GalleryRun, metrics: Metrics, healthy: Metrics, found: Sequence[Finding]) -> plt.Figure:
    """Draws a panel for each of the run's metrics: training as a line, validation as rings, the healthy run in grey.

    A shade lies where the first rule held.
    """
    figure, panels = plt.subplots(1, len(run.panels), figsize=(9.6, 2.9), layout="constrained")
    for axes, name in zip(panels, run.panels, strict=True):
        if run.beside_healthy and metrics is not healthy:
            _lines(axes, healthy, name, REFERENCE[0], "healthy", alpha=0.45)
        _lines(axes, metrics, name, light(run.loss), run.loss.upper(), alpha=1.0)
        for one in found[:1]:
            axes.axvspan(one.first_step, one.last_step, color="#c98a00", alpha=0.13, linewidth=0)
        axes.set_title(describe(name).title, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(axis="y", color="#e2e3e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _lines(axes: Axes, metrics: Metrics, name: str, colour: str, label: str, *, alpha: float) -> None:
    trained, held_out = ({s: m[key] for s, m in metrics.items() if key in m} for key in (name, VALIDATION + name))
    axes.plot(*zip(*trained.items(), strict=True), color=colour, alpha=alpha, linewidth=1.3, label=f"{label}, training")
    if held_out:
        style: dict[str, Any] = {"color": colour, "markerfacecolor": "white", "linestyle": "none", "marker": "o"}
        axes.plot(
            *zip(*held_out.items(), strict=True), alpha=alpha, label=f"{label}, validation", markersize=5, **style
        )


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "gallery", "svg.fonttype": "none", "font.size": 9})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/gallery"), help="folder of everything that is made")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figures")
    given = parser.parse_args()
    given.root.mkdir(parents=True, exist_ok=True)
    given.output.mkdir(parents=True, exist_ok=True)
    write_files(given.root)
    teach(given.root)
    results = {}
    for run in RUNS:
        train(run.config(given.root))
        metrics = metrics_of(given.root, run)
        found = found_in(run, metrics)
        results[run.name] = [asdict(one) for one in found]
        figure = draw(run, metrics, metrics_of(given.root, RUNS[0]) if run is not RUNS[0] else metrics, found)
        figure.savefig(given.output / f"{run.name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(
            run.name,
            *[f"{one.title}, steps {one.first_step} to {one.last_step}: {one.what}" for one in found],
            sep="\n  ",
        )
    (given.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
