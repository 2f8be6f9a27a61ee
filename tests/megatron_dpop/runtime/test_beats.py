"""A rank that is stopped, or hangs, is named by the others of its node; one that has reasons is not."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dpop.runtime.beats import MAIN, Board, MainThread, NodeWatch, Patience, working_alone
from megatron_dpop.runtime.rank import Rank
from megatron_dpop.training.timing import STEPS_TO_BE_NAMED, Stragglers, straggler_metrics

BEAT, SILENT, STILL, HUNG = 0.1, 4.0, 0.6, 1.5  # a busy machine may keep a thread waiting for seconds
RANK = f"""
import os, sys, threading, time
from megatron_dpop.runtime import beats
from megatron_dpop.runtime.rank import Rank

def say(line):
    print("say", line, flush=True)

def lost(line):
    print("lost", line, flush=True)
    os._exit(1)

descriptor, rank, role = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
watch = beats.NodeWatch(
    beats.Board(descriptor, 3), Rank(8 + rank, 16, rank, 3), say=say, lost=lost,
    patience=beats.Patience({BEAT}, {SILENT}, {STILL}, {HUNG}),
)
watch.start()
beats.step_took(0.01)
beats.step_took(0.01)
print("up", flush=True)
sys.stdin.readline()

def hang():
    time.sleep(600)

if role == "waits":
    with beats.waiting():
        time.sleep(600)
elif role == "alone":
    with beats.working_alone():
        hang()
elif role == "works":
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        sum(range(1_000_000))
hang()
"""


class Ranks:
    def __init__(self, folder: Path, *roles: str) -> None:
        (folder / "rank.py").write_text(RANK)
        self.descriptor = os.memfd_create("beats")
        self.processes = [
            subprocess.Popen(
                [sys.executable, folder / "rank.py", str(self.descriptor), str(rank), role],
                pass_fds=(self.descriptor,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, role in enumerate(roles)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "up\n"
        for process in self.processes:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

    def line(self, rank: int) -> str:
        return self.processes[rank].stdout.readline().strip()  # type: ignore[union-attr]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        os.close(self.descriptor)


@pytest.fixture
def ranks(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    found = Ranks(tmp_path, *request.param)
    yield found
    found.end()


@pytest.mark.parametrize("ranks", [("waits", "works", "waits")], indirect=True)
def test_a_stopped_rank_is_named_and_the_others_end(ranks: Ranks) -> None:
    assert all(process.poll() is None for process in ranks.processes)
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    for rank in (0, 2):
        expected = (
            f"lost rank 9 (process {ranks.processes[1].pid}) has been silent for 4 s: it is stopped (SIGSTOP); this"
        )
        assert ranks.line(rank).startswith(expected)


@pytest.mark.parametrize("ranks", [("waits", "hangs", "waits")], indirect=True)
def test_a_rank_that_hangs_is_named_with_its_place_and_later_ended(ranks: Ranks) -> None:
    first = ranks.line(0)
    assert first.startswith(f"say warning: rank 9 (process {ranks.processes[1].pid}) has not moved for ")
    assert "while the others wait: " in first
    assert first.endswith("(hang)")
    assert ranks.line(0).startswith("lost rank 9")
    assert ranks.processes[2].wait(20) == 1


@pytest.mark.parametrize(
    "ranks", [("waits", "works", "waits"), ("waits", "alone", "waits"), ("waits", "waits", "waits")], indirect=True
)
def test_whoever_moves_or_has_said_so_is_left_alone(ranks: Ranks) -> None:
    time.sleep(HUNG + 1)
    assert all(process.poll() is None for process in ranks.processes)
    outputs = [process.stdout for process in ranks.processes]
    assert not select.select(outputs, [], [], 0)[0], "something was said"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [("waits", "works", "waits")], indirect=True)
def test_a_run_that_was_suspended_as_a_whole_goes_on(ranks: Ranks) -> None:
    for process in ranks.processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2 * SILENT)
    for process in ranks.processes:
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(SILENT / 2)
    assert all(process.poll() is None for process in ranks.processes)


def test_work_alone_ends_with_its_block() -> None:
    with working_alone():
        assert MAIN.alone == 1
    assert MAIN.alone == 0


def test_a_watch_that_was_stopped_says_no_more() -> None:
    said: list[str] = []
    descriptor = os.memfd_create("beats")
    watches = [
        NodeWatch(
            Board(descriptor, 2),
            Rank(rank, 2, rank, 2),
            say=said.append,
            lost=said.append,
            main=MainThread(),
            patience=Patience(beat_seconds=0.02, silent_seconds=0.2),
        )
        for rank in (0, 1)
    ]
    for watch in watches:
        watch.start()
        watch.stop()
    time.sleep(0.5)
    assert not said
    assert threading.current_thread() is threading.main_thread()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("seconds", "ratio", "slowest"),
    [([1.0, 1.0, 3.0, 1.0], 3.0, 2), ([2.0, 1.0], 2.0, 0), ([1.0, 1.0], 1.0, 0), ([4.0, 1.0, 2.0], 2.0, 0)],
)
def test_the_slowest_rank_over_the_median(seconds: list[float], ratio: float, slowest: int) -> None:
    assert straggler_metrics(seconds) == {"perf/straggler": ratio, "perf/slowest_rank": slowest}


def test_what_cannot_be_compared_has_no_straggler() -> None:
    assert straggler_metrics([1.0]) == straggler_metrics([0.0, 1.0]) == straggler_metrics([]) == {}


def test_a_slow_rank_is_named_once_it_stays_slow() -> None:
    stragglers = Stragglers()
    slow, other = straggler_metrics([1.0, 1.0, 2.0]), straggler_metrics([2.0, 1.0, 1.0])
    said = [stragglers.observe(values) for values in [slow, other, *[slow] * (STEPS_TO_BE_NAMED + 2), {}]]
    assert [line for line in said if line] == ["rank 2 has taken 2.0 times as long as the others for 5 steps"]
