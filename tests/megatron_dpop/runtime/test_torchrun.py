"""Ranks' exit codes and signals pass through the launcher, whichever of its two doors they came in by."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_dpop.runtime import exits, torchrun
from tests.commands import wait_for
from tests.processes import alive

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
        ("killed", exits.FAILED, "rank 0 \\(process \\d+\\) was ended by SIGKILL"),
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


LIVING = """
import os, sys, time
open(f"{sys.argv[1]}/{os.environ['RANK']}.pid", "w").write(str(os.getpid()))
time.sleep(600)
"""


def _live(folder: Path) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(LIVING)
    launcher = [sys.executable, "-m", "megatron_dpop.runtime.torchrun", "--nproc-per-node", "2"]
    words = (str(folder / "rank.py"), str(folder))
    return subprocess.Popen([*launcher, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _pids(folder: Path, process: subprocess.Popen[str]) -> list[int]:
    wait_for(lambda: all((folder / f"{rank}.pid").exists() for rank in (0, 1)), process)
    return [int((folder / f"{rank}.pid").read_text()) for rank in (0, 1)]


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    process = _live(tmp_path)
    pids = _pids(tmp_path, process)
    process.kill()
    process.wait()
    assert _gone(pids)


def _heed_interrupts() -> None:
    """Undoes what a shell does to commands that it starts in the background: they ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    """As a terminal sends it: to the launcher and its ranks, which leave the first to the launcher."""
    code = "import signal, sys, time, os; signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1] + '/asked', 'w'))\n"
    (tmp_path / "rank.py").write_text(code + LIVING)
    launcher = [sys.executable, "-m", "megatron_dpop.runtime.torchrun", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, str(tmp_path / "rank.py"), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    pids = _pids(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: (tmp_path / "asked").exists(), process)
    assert all(alive(pid) for pid in pids)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "interrupted: saving after this step" in errors
    assert "ended at once" in errors
    assert _gone(pids)


def test_what_ranks_print_is_kept_for_each(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text("import os, sys; print('out'); print('err', file=sys.stderr)")
    words = ["--nproc-per-node", "2", "--log-dir", str(tmp_path / "logs"), str(tmp_path / "rank.py")]
    launcher = [sys.executable, "-m", "megatron_dpop.runtime.torchrun"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[rank 0] out\n", "[rank 0] err\n")
    for rank in ("0", "1"):
        assert (tmp_path / "logs" / rank / "stdout.log").read_text() == "out\n"
        assert (tmp_path / "logs" / rank / "stderr.log").read_text() == "err\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nnodes", "2", "rank.py"], "need --master-addr and --master-port"),
        (["--node-rank", "1", "rank.py"], "--node-rank from 0 to one less than --nnodes"),
        (["--log-dir", "/dev/null/logs", "rank.py"], "--log-dir: /dev/null/logs cannot be made"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert torchrun.main(words) == exits.BAD_INPUT
    assert says in capsys.readouterr().err
