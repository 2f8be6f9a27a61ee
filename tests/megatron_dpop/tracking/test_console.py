"""What a terminal and a log show of a run."""

import re
import sys

import pytest

from dpop_base.pace import Pace, duration
from megatron_dpop.tracking.console import Bar, Console
from tests.terminal import drawn_by

NOTE = "loss 0.6931  accuracy 0.88  chosen - reference -33.15  pairs/s 0.31"
SCRIPT = f"""
from megatron_dpop.tracking.console import Console
console = Console(silent=False)
with console.progress("dpop", 20000, done=9000) as bar:
    bar.update(9001, {NOTE!r})
    bar.update(9002, {NOTE!r})
    console.say("health: step 9001: ...")
    bar.update(20000, {NOTE!r})
"""


def test_bar_and_numbers_fit_a_terminal_of_80_columns() -> None:
    lines = re.split(r"[\r\n]+", drawn_by([sys.executable, "-c", SCRIPT]))
    assert max(map(len, lines)) <= 80
    assert NOTE in lines
    bars = [line for line in lines if line.startswith("dpop ")]
    assert all(re.search(r"\d+/20000", bar) for bar in bars)
    assert "health: step 9001: ..." in lines


def test_a_log_gets_lines_with_the_time_left(capfd: pytest.CaptureFixture[str]) -> None:
    with Console(silent=False).progress("dpop", 4) as bar:
        for step in range(4):
            bar.update(step + 1, NOTE, line=True)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"dpop 1/4  {NOTE}"  # one step, which pays for starting up, is no measure
    assert lines[1] == f"dpop 2/4  {NOTE}  0 s left"
    assert lines[3] == f"dpop 4/4  {NOTE}"


def test_the_time_left_is_measured_from_this_start_on_and_without_its_first_step() -> None:
    now = [0.0]
    bar = Bar(Console(silent=True), "dpop", 100, 90, None)
    bar._pace = Pace(100, done=90, clock=lambda: now[0])
    for done, at, left in ((91, 400.0, ""), (92, 460.0, "8 min left"), (93, 580.0, "10 min left"), (100, 900.0, "")):
        now[0] = at
        assert bar._time_left(done) == left


def test_what_shows_no_numbers_of_its_own_shows_its_pace(capfd: pytest.CaptureFixture[str]) -> None:
    with Console(silent=False).progress("reference", 3) as bar:
        for step in range(3):
            bar.update(step + 1)
    first, second, _ = capfd.readouterr().err.splitlines()
    assert first == "reference 1/3"
    assert re.fullmatch(r"reference 2/3  0\.00 s each  0 s left", second)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (750, "12 min"), (12000, "3 h 20 min"), (190000, "2 d 4 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
