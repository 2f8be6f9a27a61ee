"""One colour for each loss, the same on every page and in every figure."""

from collections.abc import Iterator, Sequence
from itertools import count

# (light, dark). The paper's three losses have colours that are told apart by whoever sees colours otherwise, too.
OF_LOSS = {"dpo": ("#c8501e", "#f08a52"), "dpop": ("#1f63c6", "#6ea8ff"), "ipo": ("#0b8570", "#3dbfa5")}
REFERENCE = ("#6b7280", "#a0a8b3")
# Of a run that shares its loss with an earlier one of the page, or has none: no loss has these.
OTHERS = (
    ("#9a3fa8", "#cf86db"),
    ("#8a6d00", "#cfae3a"),
    ("#c22f5b", "#f2789b"),
    ("#4a8a1c", "#8cc65a"),
    ("#5b54c9", "#9d97f5"),
)
# Losses whose colour is a hue of its own, in an order that stays: a new one goes to the end.
OF_HUES = (
    *("sft", "kto", "simpo", "orpo", "cpo", "hinge", "robust", "exo", "discopop", "apo_zero", "apo_down"),
    *("nca", "bco", "sppo_hard", "cal_dpo", "dpo_shift", "bpo", "aft", "sum"),
)
FIRST_HUE = 14.0  # degrees: the next six lie 24 or more from the colours above
GOLDEN_ANGLE = 137.508  # degrees: spreads any number of further hues

REFERENCE_COLOUR = "var(--reference)"


def light(name: str) -> str:
    """The colour of the reference or of one of the paper's losses on white: six hexadecimal digits."""
    return (REFERENCE if name == "reference" else OF_LOSS[name])[0]


def series_colours(losses: Sequence[str | None]) -> list[str]:
    """CSS colours of a page's runs by their losses; each its own. None: the loss is not known."""
    further = _further()
    return [
        next(further) if loss is None or loss in losses[:at] else _of(loss) or next(further)
        for at, loss in enumerate(losses)
    ]


def style() -> str:
    """The variables that the colours are, for light and dark screens and for paper."""
    named = {
        **{f"--{loss}": colours for loss, colours in OF_LOSS.items()},
        **{f"--other-{at}": colours for at, colours in enumerate(OTHERS)},
        "--reference": REFERENCE,
    }
    on_light, on_dark = (" ".join(f"{name}: {pair[at]};" for name, pair in named.items()) for at in range(2))
    return f":root {{ {on_light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {on_dark} }} }}\n"


def _of(loss: str) -> str | None:
    if loss in OF_LOSS:
        return f"var(--{loss})"
    return _hue(OF_HUES.index(loss)) if loss in OF_HUES else None


def _further() -> Iterator[str]:
    yield from (f"var(--other-{at})" for at in range(len(OTHERS)))
    yield from map(_hue, count(len(OF_HUES)))


def _hue(at: int) -> str:
    return f"oklch(var(--run-lightness) 0.13 {(FIRST_HUE + at * GOLDEN_ANGLE) % 360:.0f})"
