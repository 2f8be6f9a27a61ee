"""The command, killed and started twice: its folder has one writer, and the same command ends as if left alone."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import PATIENCE_SECONDS, lines, ranks_of, start, wait_for, write_world
from tests.processes import alive, descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAUSED = Path(__file__).parent.parent.parent / "paused"
DYING_SECONDS = 60

# What the run is doing (by the path that it is about to change), and who is killed then.
KILLS = (
    ("tokenising", ".arrow", "launcher"),
    ("converting", "/initial/", "launcher"),
    ("reference", "/reference/.train", "rank 1"),
    ("saving", "/checkpoints/iter_0000002", "all"),
    ("exporting", "/hf/", "rank 0"),
)


@dataclass
class World:
    config: Path
    whole: Path  # the folder of a run that was left alone

    @property
    def folder(self) -> Path:
        return self.config.parent

    def start(self, run: str, **environment: str) -> "subprocess.Popen[str]":
        """A run in a folder of this name, with a token cache of its own."""
        path = os.pathsep.join([str(PAUSED), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(self.folder / f"cache of {run}"), **environment}
        return start("train", self.config, "--run.dir", self.folder / run, env=own)

    def paused(self, run: str, at: str, name: str) -> tuple["subprocess.Popen[str]", Path]:
        """A run that waits where it is about to change a file whose path holds `at`, and what lets it go on."""
        mark = self.folder / f"{run} {name}"
        process = self.start(run, PAUSE_AT=at, PAUSE_FILE=str(mark))
        wait_for(mark.exists, process)
        return process, Path(f"{mark}.go")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("accidents")
    config = write_world(
        folder,
        precision={"params": "bf16"},
        train={"steps": 4},
        checkpoint={"every": 2, "export_hf": True},
    )
    found = World(config, folder / "whole")
    _ends_well(found.start("whole"))
    return found


def _ends_well(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    return said


def _difference(run: Path, whole: Path) -> str | None:
    """What the command left otherwise than where it was left alone."""
    if _metrics(run) != _metrics(whole):
        return "other metrics"
    for path in sorted((whole / "hf").iterdir()):
        if path.name != "conversion-manifest.json" and (run / "hf" / path.name).read_bytes() != path.read_bytes():
            return f"another {path.name}"
    left = [str(path) for path in run.rglob(".*.tmp")]
    return f"left behind: {left}" if left else None


def _metrics(run: Path) -> list[dict[str, float]]:
    parsed = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in parsed]


def _kill(process: "subprocess.Popen[str]", who: str, go: Path) -> None:
    """Kills the launcher alone, one rank, or all at once; nobody lives on. `go` lets those who are left go on."""
    started = descendants(process.pid)
    ranks = ranks_of(process)
    if who == "all":
        victims = started
    elif who == "launcher":
        victims = {process.pid}
    else:
        victims = {ranks[int(who.removeprefix("rank "))]}
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    go.touch()
    said, _ = process.communicate(timeout=DYING_SECONDS)
    assert process.returncode == (1 if who.startswith("rank") else -signal.SIGKILL), said
    deadline = time.monotonic() + DYING_SECONDS
    while any(map(alive, started)):
        assert time.monotonic() < deadline, "somebody goes on writing"
        time.sleep(0.02)


def test_killed_again_and_again_it_ends_the_same(world: World) -> None:
    for number, (phase, at, who) in enumerate(KILLS):
        process, go = world.paused("killed", at, f"{number} {phase}")
        _kill(process, who, go)
    _ends_well(world.start("killed"))
    assert _difference(world.folder / "killed", world.whole) is None


def test_of_two_starts_one_writes(world: World) -> None:
    """At eight moments of a run, the first of which nobody has come before."""
    mark = world.folder / "first save"
    starts = []
    for seconds in (0.0, 0.05, 0.5, 1.0, 2.0):
        time.sleep(seconds)
        starts.append(world.start("twice", PAUSE_AT="/checkpoints/iter_0000002", PAUSE_FILE=str(mark)))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not mark.exists() or sum(one.poll() is None for one in starts) > 1:
        assert time.monotonic() < deadline, [one.poll() for one in starts]
        time.sleep(0.05)
    (writer,) = (one for one in starts if one.poll() is None)
    holder = ranks_of(writer)[0]
    late = [world.start("twice") for _ in range(3)]
    time.sleep(1)
    for other in [one for one in starts if one is not writer] + late:
        said, _ = other.communicate(timeout=PATIENCE_SECONDS)
        assert other.returncode == 2, said
        assert f"is being written by process {holder} on " in said.splitlines()[-1]
    Path(f"{mark}.go").touch()
    _ends_well(writer)
    assert _difference(world.folder / "twice", world.whole) is None
    _ends_well(start("train", world.config, "--run.dir", world.folder / "twice", "--train.steps", "5"))
    assert len(_metrics(world.folder / "twice")) == 5


def test_a_rank_that_stops_in_training_is_named_within_a_minute(world: World) -> None:
    run = world.folder / "stopped"
    process = start("train", world.config, "--run.dir", run, "--train.steps", "100000", "--checkpoint.every", "100000")
    wait_for(lambda: lines(run) > 2, process)
    started, stopped = descendants(process.pid), ranks_of(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, "a restart may help"
    assert f"rank 1 (process {stopped}) has been silent for 30 s: it is stopped (SIGSTOP)" in said.splitlines()[-1]
    deadline = time.monotonic() + DYING_SECONDS
    while any(map(alive, started)):
        assert time.monotonic() < deadline, "somebody is left behind"
        time.sleep(0.02)
