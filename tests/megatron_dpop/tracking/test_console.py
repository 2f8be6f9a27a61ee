"""What a terminal and a log show of a run."""

import os
import pty
import re
import subprocess
import sys

import pytest

from megatron_dpop.tracking.console import Bar, Console, duration

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


def _in_a_terminal(columns: int) -> str:
    """What the script draws, without control sequences."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    drawn = b""
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(master)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


def test_bar_and_numbers_fit_a_terminal_of_80_columns() -> None:
    lines = re.split(r"[\r\n]+", _in_a_terminal(80))
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


def test_the_time_left_is_measured_from_this_start_on() -> None:
    bar = Bar(Console(silent=True), "dpop", 100, 90, None)
    bar._started -= 120  # two minutes for the two steps since
    assert bar._time_left(91) == ""
    assert bar._time_left(92) == "8 min left"
    assert bar._time_left(100) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (750, "12 min"), (12000, "3 h 20 min"), (190000, "2 d 4 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
