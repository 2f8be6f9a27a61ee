"""Runs that coincide are said to, on their cards and in each chart where one line hides another."""

import re
from pathlib import Path

from megatron_dpop.report import write_report
from megatron_dpop.report.coincide import overlaps, same_values
from megatron_dpop.report.run import read_runs
from tests.megatron_dpop.report.runs import metrics, write_run


def test_page_says_which_runs_coincide_and_where(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "dpo", loss="dpo", end=-6.1)]
    runs += [write_run(tmp_path / name, end=1.8) for name in ("dpop", "again")]
    write_report(runs, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    cards = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert ["Coincides with" in card for card in cards] == [False, False, True]
    assert "Coincides with dpop: " in cards[2]
    said = dict(re.findall(r'id="chart-([\w-]+)">.*?class="overlaps">([^<]*)<', html, re.DOTALL))
    assert said["logps-chosen-minus-reference"] == "dpop and again lie on each other."
    assert said["rewards-accuracies"] == "dpo, dpop and again lie on each other."


def test_runs_that_differ_are_not_said_to_coincide(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "dpo", loss="dpo", end=-6.1), write_run(tmp_path / "dpop", end=1.8)]
    one = metrics(20, end=1.8)
    one[7]["loss"] += 1e-12
    runs += [write_run(tmp_path / "near", rows=one), write_run(tmp_path / "begun", rows=metrics(20, end=1.8)[:9])]
    assert same_values(read_runs(runs)) == [None] * 4


def test_clock_and_missing_numbers_make_no_difference(tmp_path: Path) -> None:
    slow = metrics(20, end=1.8)
    for row in slow:
        row |= {name: 2 * value for name, value in row.items() if name.startswith("perf/")}
    for rows in (slow, fast := metrics(20, end=1.8)):
        rows[3]["loss"] = float("nan")
    runs = [write_run(tmp_path / "slow", rows=slow), write_run(tmp_path / "fast", rows=fast)]
    assert same_values(read_runs(runs)) == [None, "slow"]


def test_lines_coincide_within_their_width() -> None:
    line = {step: float(step) for step in range(11)}  # of a chart that is 10 high
    close, apart = ({step: value + by for step, value in line.items()} for by in (0.03, 0.06))
    assert overlaps({"train": [("a", line), ("b", close)]}) == "a and b lie on each other"
    assert overlaps({"train": [("a", line), ("b", apart)]}) == ""
    assert overlaps({"train": [("a", {**line, 4: None}), ("b", close)]}) == ""
    assert overlaps({"train": [("a", {0: 0.0, 9: 1.0}), ("b", {0: 0.0})]}) == ""  # one point is no line
    both = {"train": [("a", line), ("b", apart)], "validation": [("a", line), ("b", line)]}
    assert overlaps(both) == "In validation, a and b lie on each other"
    assert overlaps({"train": [(str(at), line) for at in range(9)]}) == "9 runs lie on each other"
    assert overlaps({"train": [("a", {})], "validation": []}) == ""
