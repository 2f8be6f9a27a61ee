"""How the figures of both pages look."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from examples.arithmetic.results import Estimate
from megatron_dpop.pages.colours import OTHERS, light

# Of pairs of low and of high edit distance: no loss has these on any page.
OF_EDITS = {"low": OTHERS[0][0], "high": OTHERS[1][0]}
GREY = light("reference")


def begin() -> None:
    mpl.rcParams.update({"svg.hashsalt": "arithmetic", "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10})


def finish(axes: Axes, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e2e3e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def dots(
    axes: Axes, names: Sequence[str], found: Mapping[str, Estimate], *, colour: str, label: str, shift: float = 0
) -> None:
    """A line for each name, from the top: mean and 95% interval; an empty one where nothing was found of it."""
    some = [name for name in names if name in found]
    places = [len(names) - 1 - names.index(name) + shift for name in some]
    means = [found[name].mean for name in some]
    halves = [half(found[name]) for name in some]
    axes.errorbar(means, places, xerr=halves, fmt="o", color=colour, label=label, markersize=4)
    axes.set_yticks(range(len(names)), reversed(names))


def half(one: Estimate) -> float:
    """Returns half of the interval's width; zero for a single run, which has none."""
    return 0.0 if math.isnan(one.half) else one.half


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
