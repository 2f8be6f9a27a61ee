"""A folder has one writer: who is refused, who takes over, and who must leave."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from dpop_base.files import remove_stale
from megatron_dpop.runtime import folder_lock
from megatron_dpop.runtime.folder_lock import NAME, FolderLock, Writer, check_unlocked

HOLDER = """
import sys, time
from pathlib import Path
from megatron_dpop.runtime.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), say=print, lost=print, beat_seconds=0.1).held():
    print("held", flush=True)
    time.sleep(600)
"""


def _lock(folder: Path, **options: float) -> tuple[FolderLock, list[str], list[str]]:
    said: list[str] = []
    lost: list[str] = []
    times = {"beat_seconds": 0.05, "silent_seconds": 1.0, **options}
    return FolderLock(folder, say=said.append, lost=lost.append, **times), said, lost


def _hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "DYING_SECONDS", 0.5)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def elsewhere() -> Writer:
    """A writer on another machine."""
    here = Writer.this_process()
    return replace(here, token="other", host="n7", kernel="another boot", pid=4242, job=None)


def _left(folder: Path, writer: Writer) -> None:
    (folder / NAME).write_text(json.dumps(asdict(writer)))


def test_the_second_is_told_who_holds_it_and_may_come_after(tmp_path: Path) -> None:
    process = _hold(tmp_path)
    lock, _, _ = _lock(tmp_path)
    refusal = (
        rf"is being written by process {process.pid} on .* \(since 20.*`kill {process.pid}`.*takes the folder over"
    )
    try:
        with pytest.raises(UserError, match=refusal), lock.held():
            pass
        with pytest.raises(UserError, match=refusal):
            check_unlocked(tmp_path)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        check_unlocked(tmp_path)
        lock, said, _ = _lock(tmp_path)
        with lock.held():
            assert f"was left by process {process.pid} on" in said[0]
    finally:
        process.kill()
        process.wait()
    lock, said, _ = _lock(tmp_path)
    with lock.held():
        assert not said, "a writer that has left in order leaves nothing to take over"


def test_a_stopped_holder_still_holds(tmp_path: Path) -> None:
    process = _hold(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError), _lock(tmp_path)[0].held():
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_another_machine_is_judged_by_its_beat(
    tmp_path: Path, elsewhere: Writer, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        monkeypatch.setattr(folder_lock, "_lock", lambda *_: None)
    _left(tmp_path, elsewhere)
    ended = threading.Event()

    def beat() -> None:
        writer = elsewhere
        while not ended.wait(0.05):
            writer = replace(writer, beat=writer.beat + 1)
            (tmp_path / "new").write_text(json.dumps(asdict(writer)))
            os.replace(tmp_path / "new", tmp_path / NAME)

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        with pytest.raises(UserError, match="process 4242 on n7"), _lock(tmp_path)[0].held():
            pass
    finally:
        ended.set()
        beats.join()
    lock, said, _ = _lock(tmp_path)
    with lock.held():  # it has fallen silent
        assert "looking for up to 1 s whether it still does" in said[0]


def test_a_requeued_job_does_not_wait_for_its_earlier_start(
    tmp_path: Path, elsewhere: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left(tmp_path, replace(elsewhere, job="77", restart=0))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    started = time.monotonic()
    with _lock(tmp_path, silent_seconds=60)[0].held():
        assert time.monotonic() - started < 30


def test_without_locks_this_machines_processes_are_known(
    tmp_path: Path, elsewhere: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_lock", lambda *_: None)
    here = Writer.this_process()
    _left(tmp_path, replace(here, token="other"))
    with pytest.raises(UserError), _lock(tmp_path)[0].held():
        pass
    _left(tmp_path, replace(here, token="other", process_start=here.process_start - 1))  # another had its number
    with _lock(tmp_path)[0].held():
        pass


def test_who_was_taken_over_leaves(tmp_path: Path, elsewhere: Writer) -> None:
    lock, _, lost = _lock(tmp_path)
    with lock.held():
        _left(tmp_path, elsewhere)
        deadline = time.monotonic() + 20
        while not lost and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "was taken over by process 4242 on n7" in lost[0]
    assert json.loads((tmp_path / NAME).read_text())["host"] == "n7", "what is another's is left alone"


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[1]", "\0" * 100])
def test_a_damaged_file_holds_nobody_up(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with _lock(tmp_path)[0].held():
        pass


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "below").mkdir()
    stale = tmp_path / "below" / f".config.yaml.{dead.pid}.tmp"
    kept = [tmp_path / f".config.yaml.{os.getpid()}.tmp", tmp_path / "notes.tmp", tmp_path / ".notes.x.tmp"]
    for path in (stale, *kept):
        path.write_text("half")
    remove_stale(tmp_path)
    assert not stale.exists()
    assert all(path.exists() for path in kept)
