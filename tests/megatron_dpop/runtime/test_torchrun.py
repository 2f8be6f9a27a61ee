"""Ranks' exit codes and signals pass through the launcher, whichever of its two doors they came in by."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_dpop.runtime import exits

RANK = """
import os, signal, sys, time
end = sys.argv[1]
if end == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    open(f"{sys.argv[2]}/ready-{os.environ['RANK']}", "w").close()
    time.sleep(600)
elif os.environ["RANK"] == "1":
    time.sleep(600)  # ended by the other's failure
elif end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
"""


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    launcher = [sys.executable, "-m", "megatron_dpop.runtime.torchrun", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*launcher, str(folder / "rank.py"), *words], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("end", "expected", "word"),
    [
        ("2", exits.BAD_INPUT, "error"),
        ("3", exits.UNHEALTHY, "unhealthy"),
        ("75", exits.STOPPED, ""),
        ("1", exits.FAILED, "failed"),
        ("killed", exits.FAILED, "Signal 9 \\(SIGKILL\\)"),
    ],
)
def test_the_first_ranks_exit_code_is_the_launchers(tmp_path: Path, end: str, expected: int, word: str) -> None:
    process = _start(tmp_path, end)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == expected
    assert re.search(word, errors)
    assert "Traceback" not in errors


def test_a_signal_is_handed_on_to_the_ranks(tmp_path: Path) -> None:
    process = _start(tmp_path, "wait", str(tmp_path))
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exits.STOPPED
    assert "Traceback" not in errors
