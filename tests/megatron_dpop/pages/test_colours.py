"""A loss has one colour everywhere."""

import re
from pathlib import Path

from megatron_dpop.losses.registry import REGISTRY
from megatron_dpop.pages.colours import OF_HUES, OF_LOSS, OTHERS, REFERENCE, light, series_colours, style

ROOT = Path(__file__).parents[3]


def test_each_loss_has_a_colour_of_its_own_wherever_it_stands() -> None:
    losses = [*OF_LOSS, *OF_HUES]
    assert sorted(losses) == sorted([*REGISTRY, "sum"])
    assert len(set(series_colours(losses))) == len(losses)
    alone = {loss: series_colours([loss])[0] for loss in losses}
    assert series_colours(["sft", "dpop", "dpo"]) == [alone["sft"], alone["dpop"], alone["dpo"]]


def test_runs_without_a_loss_of_their_own_have_colours_that_no_loss_has() -> None:
    of_losses = set(series_colours([*OF_LOSS, *OF_HUES]))
    first, *rest = series_colours(["dpop", *["dpop"] * 20, *[None] * 20, "another version's"])
    assert first == "var(--dpop)"
    assert len({first, *rest}) == 42
    assert not of_losses & set(rest)


def test_every_variable_is_there_in_light_and_dark() -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", " ".join(series_colours([*OF_LOSS, *[None] * 40])))) - {
        "--run-lightness"
    }
    assert len(used) == len(OF_LOSS) + len(OTHERS)
    for name in (*used, "--reference"):
        assert len(re.findall(rf"{name}: #[0-9a-f]{{6}};", style())) == 2


def test_figures_of_the_documents_have_the_colours_of_the_pages() -> None:
    """In the order in which the lines are drawn: a loss at its own values, and others at values that no loss has."""
    expected = {
        "paper/low_edit": [light("dpo"), light("dpop"), light("ipo")],
        "paper/high_edit": [light("dpo"), light("dpop"), light("ipo")],
        "paper/low_edit_tokens": [light("reference"), light("dpo"), light("dpop"), light("ipo")],
        "paper/beta": [OTHERS[0][0], light("dpo"), OTHERS[1][0]],
        "paper/lambda": [light("dpo"), OTHERS[0][0], OTHERS[1][0], light("dpop")],
        "images/loss_gradients": [light("dpo"), light("dpop")],
    }
    known = {on_light for on_light, _ in (*OF_LOSS.values(), *OTHERS, REFERENCE)}
    for name, colours in expected.items():
        drawn = re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", (ROOT / "docs" / f"{name}.svg").read_text())
        assert list(dict.fromkeys(colour for colour in drawn if colour in known)) == colours, name
