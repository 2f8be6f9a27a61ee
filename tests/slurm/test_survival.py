"""What happens to jobs on shared clusters happens to these; their metrics are those of a run that was left alone."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from dpop_base.checkpoint_names import TRACKER
from megatron_dpop.checkpoints.complete import incompleteness
from tests.distributed import run_ranks
from tests.slurm.cluster import Cluster, heartbeat, metrics
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

pytestmark = pytest.mark.slow

STEPS = 120
EVERY = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    write_model(folder / "model", dtype="bfloat16")
    write_pairs(folder / "pairs.jsonl", 20)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(world: Path) -> list[dict]:
    run_ranks(train_here, 2, _tree(world, "uninterrupted"))
    return metrics(world / "uninterrupted")


def _tree(world: Path, run: str) -> dict:
    return write_config(
        world,
        world / "model",
        parallel={"pipeline": 2},
        train={"steps": STEPS, "validate_every": EVERY},
        data={"validation": str(world / "pairs.jsonl")},
        checkpoint={"every": EVERY},
        run={"dir": str(world / run)},
    )


def _config(world: Path, run: str) -> Path:
    path = world / f"{run}.yaml"
    path.write_text(yaml.safe_dump(_tree(world, run)))
    return path


def _wait_for_steps(cluster: Cluster, job: str, run: Path, steps: int) -> None:
    cluster.wait_until(lambda: len(metrics(run)) >= steps, lambda: f"{heartbeat(run)}\n{cluster.log(job)}")


def test_the_time_limit(cluster: Cluster, world: Path, uninterrupted: list[dict]) -> None:
    """SLURM sends SIGUSR1 before the limit: saved after the step, requeued, gone on from that very step."""
    run = world / "time_limit"
    sooner_seconds = 120
    (job,) = cluster.submit(
        "train.sbatch",
        _config(world, "time_limit"),
        JOB_NODES=1,
        JOB_RANKS_PER_NODE=2,
        JOB_SIGNAL_SECONDS=sooner_seconds,
    )
    _wait_for_steps(cluster, job, run, 2)
    rank_0 = heartbeat(run)["pid"]
    os.kill(rank_0, signal.SIGSTOP)  # a step as long as SLURM takes to look at time limits; its signal ends that too
    taken = len(metrics(run))
    hours, minutes, _ = re.search(r"RunTime=(\d+):(\d+):(\d+)", cluster.scontrol("show", "job", job)).groups()
    cluster.scontrol("update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + sooner_seconds // 60}")
    requeued = "train.sbatch: stopped and saved; requeued, will go on from iter_"
    cluster.wait_until(lambda: requeued in cluster.log(job), lambda: cluster.log(job))
    cluster.scontrol("update", f"JobId={job}", "TimeLimit=30")
    log = cluster.finished(job)
    assert metrics(run) == uninterrupted
    assert log.count(requeued) == 1
    saved = int(log.split(requeued)[1][:7])
    assert taken <= saved < STEPS
    assert f"[rank 0] resuming after step {saved} " in log
    assert f"job {job}, restart 1, on " in log


def test_requeueing_and_the_death_of_a_node(cluster: Cluster, world: Path, uninterrupted: list[dict]) -> None:
    run = world / "node_death"
    (job,) = cluster.submit("train.sbatch", _config(world, "node_death"))

    # An operator, or a job of higher priority: SIGTERM to all ranks, some sooner than others.
    _wait_for_steps(cluster, job, run, 2)
    cluster.scontrol("requeue", job)
    _wait_for_restart(cluster, job, 1)
    stopped = heartbeat(run)
    assert stopped["state"] in ("stopped", "starting", "training"), stopped
    saved = int(stopped["saved"].removeprefix("iter_"))
    assert saved >= 2
    _wait_for_steps(cluster, job, run, saved + EVERY + 2)

    # A power cut: the ranks of n2, what started them, and SLURM's daemons there.
    last = heartbeat(run)["saved"]
    cluster.kill_node("n2")
    seconds = cluster.wait_until(lambda: cluster.state(job) != "RUNNING", lambda: cluster.log(job))
    assert seconds < 60
    cluster.start_node("n2")
    _wait_for_restart(cluster, job, 2)
    log = cluster.finished(job)
    assert "exit code 1; requeued, will go on from iter_" in log
    # SLURM sends n2, up to a minute after its return, what n2 missed: a SIGTERM to step 0 of this job, which by then is
    # the new start's step of that number. That stops, saves and goes on once more.
    first, second, *_ = (int(step) for step in re.findall(r"resuming after step (\d+) ", log))
    assert first == saved
    assert second >= int(last.removeprefix("iter_"))  # nothing is lost but the steps since the last checkpoint
    assert metrics(run) == uninterrupted


def _wait_for_restart(cluster: Cluster, job: str, count: int) -> None:
    cluster.wait_until(lambda: f"job {job}, restart {count}, on" in cluster.log(job), lambda: cluster.log(job))


@pytest.mark.usefixtures("uninterrupted")
def test_a_full_disk(cluster: Cluster, world: Path, tmp_path: Path) -> None:
    """The second checkpoint does not fit: the first stays whole, the job says why it ended, and is not requeued."""
    disk = tmp_path / "disk"
    disk.mkdir()
    one_checkpoint = sum(path.stat().st_size for path in (_a_checkpoint(world)).iterdir())
    # Beside it, the converted starting weights and small files.
    size = one_checkpoint + one_checkpoint // 4 + (400 << 10)
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount the small file system that this test fills")
    cluster.command("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk)
    try:
        words = ["--run.dir", disk / "run", "--train.steps", "4", "--checkpoint.every", "2"]
        config = _config(world, "full_disk")
        (job,) = cluster.submit("train.sbatch", config, *words, JOB_NODES=1, JOB_RANKS_PER_NODE=2)
        assert cluster.wait_for_state(job, "FAILED", "COMPLETED") == "FAILED"
        log = cluster.log(job)
        assert "iter_0000004: cannot be written" in log, log
        assert re.search(r"; 0\.\d MiB are free there\)", log), log  # PyTorch's own words differ by what was written
        assert log.rstrip().endswith("train.sbatch: bad input, see above; not requeued")
        assert "ExitCode=2:0" in cluster.scontrol("show", "job", job)
        checkpoints = disk / "run" / "checkpoints"
        assert (checkpoints / TRACKER).read_text() == "2"
        assert [path.name for path in checkpoints.glob("iter_*")] == ["iter_0000002"]
        assert incompleteness(checkpoints / "iter_0000002") is None
    finally:
        cluster.command("umount", "--lazy", disk)


def _a_checkpoint(world: Path) -> Path:
    return next((world / "uninterrupted" / "checkpoints").glob("iter_*"))


def test_a_job_that_gets_nowhere_stops(cluster: Cluster, world: Path, tmp_path: Path) -> None:
    """Its environment is broken on the nodes: three restarts, then an end with a line that says so."""
    broken = tmp_path / "environment.sh"
    good = (cluster.work / "environment.sh").read_text()
    broken.write_text(f"{good}if [[ -n ${{SLURM_JOB_ID:-}} ]]; then exit 1; fi\n")
    one_node = {"JOB_NODES": 1, "JOB_RANKS_PER_NODE": 2, "JOB_ENVIRONMENT": broken}
    (job,) = cluster.submit("train.sbatch", _config(world, "nowhere"), **one_node)
    assert cluster.wait_for_state(job, "FAILED", "COMPLETED") == "FAILED"
    log = cluster.log(job)
    assert log.count("requeued, will go on from the beginning") == 3
    assert "3 restarts in a row got no further than the beginning" in log.splitlines()[-1]
