"""The tables and figures of docs/paper/accuracy.md and docs/arena.md are those of the committed results."""

from pathlib import Path

import pytest

from examples.arena import contest
from examples.arena import page as arena
from examples.arithmetic.pages import filled
from examples.arithmetic.results import Results
from examples.paper import accuracy
from examples.paper import accuracy_page as paper
from megatron_dpop.config.losses import PAIR_LOSSES
from tests.documents.commands import ROOT

PAGES = {
    "paper/accuracy.md": lambda: paper.Page(paper.committed()),
    "arena.md": lambda: arena.Page(arena.committed()),
}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_is_what_the_results_say(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert filled(text, PAGES[name]().blocks()) == text


def test_what_a_sceptic_asks_is_answered_by_the_results() -> None:
    text = (ROOT / "docs" / "paper" / "README.md").read_text(encoding="utf-8")
    assert filled(text, {"sceptic": paper.Page(paper.committed()).sceptic()}) == text


def test_figures_are_those_of_the_results(tmp_path: Path) -> None:
    paper.Page(paper.committed()).draw(tmp_path / "accuracy.svg")
    arena.Page(arena.committed()).draw(tmp_path)
    assert (tmp_path / "accuracy.svg").read_bytes() == (ROOT / "docs" / "paper" / "accuracy.svg").read_bytes()
    for name in ("arena_kept.svg", "arena_price.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "images" / name).read_bytes()


@pytest.mark.parametrize(
    ("results", "trials"),
    [(paper.committed(), accuracy.trials()), (arena.committed(), contest.trials(list(PAIR_LOSSES)))],
    ids=["accuracy", "arena"],
)
def test_committed_lines_are_whole_and_of_trials_that_there_are(results: Results, trials: list) -> None:
    lines = results.by_name()
    start = lines.pop("start")
    known = {one.name: one for one in trials}
    assert lines
    assert lines.keys() <= known.keys()
    for name, line in {**lines, "start": start}.items():
        assert line["accuracy"] == line["solved"].count("1") / len(line["solved"])
        assert line["problems"] == len(line["solved"]) >= (known[name].problems if name in known else 300)
    for line in lines.values():
        assert line["margin"] == pytest.approx(line["chosen_minus_reference"] - line["rejected_minus_reference"])
