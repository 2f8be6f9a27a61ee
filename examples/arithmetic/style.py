"""How the figures of both pages look."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from examples.arithmetic.results import Estimate

LOW, HIGH, GREY = "#1f63c6", "#c8501e", "#6b7280"


def begin() -> None:
    mpl.rcParams.update({"svg.hashsalt": "arithmetic", "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10})


def finish(axes: Axes, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e2e3e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def dots(axes: Axes, names: Sequence[str], found: Sequence[Estimate], *, colour: str, label: str, shift: float) -> None:
    """A line for each name, from the top: mean and 95% interval."""
    places = [len(names) - 1 - at + shift for at in range(len(names))]
    halves = [0.0 if one.half != one.half else one.half for one in found]  # NaN: of a single run
    axes.errorbar([one.mean for one in found], places, xerr=halves, fmt="o", color=colour, label=label, markersize=4)
    axes.set_yticks(range(len(names)), reversed(names))


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
