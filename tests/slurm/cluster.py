"""A private SLURM of two nodes on this machine, and the scripts of examples/slurm run on it as a user runs them."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "slurm"
CONTROL = ROOT / "tools" / "slurm_cluster.sh"
PATIENCE_SECONDS = 400  # of waiting for anything: many times what an idle machine takes


class Cluster:
    """`nodes` n1, n2, ..., started; `work` is the folder that jobs are submitted from."""

    def __init__(self, folder: Path, work: Path, nodes: int = 2) -> None:
        self.folder, self.work = folder, work
        self._control("start", nodes)
        # Each node believes that all of this machine's cores are its own; another number of threads rounds otherwise.
        environment = f"export PATH={Path(sys.executable).parent}:$PATH OMP_NUM_THREADS=1\n"
        (work / "environment.sh").write_text(environment)
        self.settings = {
            "JOB_NODES": 2,
            "JOB_RANKS_PER_NODE": 1,
            "JOB_GPUS_PER_NODE": 0,
            "JOB_EXTRA": "",
            "JOB_CPU_EXTRA": "",
            "JOB_TIME": 30,
            "JOB_SIGNAL_SECONDS": 60,
            "JOB_ENVIRONMENT": work / "environment.sh",
            "JOB_LOGS": work / "logs",
        }

    def stop(self) -> None:
        self._control("stop")

    def kill_node(self, node: str) -> None:
        self._control("kill-node", node)

    def start_node(self, node: str) -> None:
        self._control("start-node", node)

    def script(self, name: str, *words: object, **settings: object) -> subprocess.CompletedProcess[str]:
        """Runs a script of examples/slurm with `settings` over those of these tests."""
        return self._run(str(SCRIPTS / name), *words, **{**self.settings, **settings})

    def submit(self, name: str, *words: object, **settings: object) -> list[str]:
        """Ids of the jobs that a script submits."""
        done = self.script(name, *words, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"submitted job (\d+)", done.stdout)

    def scontrol(self, *words: object) -> str:
        return self.command("scontrol", *words)

    def command(self, *words: object) -> str:
        done = self._run(*words)
        assert done.returncode == 0, f"{words}: exit code {done.returncode}, {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Ids of all jobs that there are or were."""
        return self.command("squeue", "--states=all", "--noheader", "--format=%i").split()

    def state(self, job: str) -> str:
        """Of a job, or of an array's tasks without repetitions; nothing where the controller is too busy to say."""
        found = self._run("squeue", "--noheader", "--states=all", "--array", "--jobs", job, "--format=%T")
        return " ".join(sorted(set(found.stdout.split()))) if found.returncode == 0 else ""

    def wait_for_state(self, job: str, *states: str) -> str:
        """Waits until the job is in one of the states, and returns it."""
        self.wait_until(lambda: self.state(job) in states, lambda: f"job {job} is {self.state(job)}: {self.log(job)}")
        return self.state(job)

    def finished(self, job: str) -> str:
        """Waits for the end of a job that is to succeed; returns its log."""
        ended = self.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        assert ended == "COMPLETED", f"job {job}: {ended}\n{self.log(job)}"
        return self.log(job)

    def log(self, job: str) -> str:
        logs = self.work / "logs"
        return "".join(path.read_text() for path in sorted([*logs.glob(f"*-{job}.log"), *logs.glob(f"*-{job}_*.log")]))

    def wait_until(self, condition: Callable[[], bool], story: Callable[[], str]) -> float:
        """Seconds until the condition held; fails with the story where it does not come to."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < PATIENCE_SECONDS, story()
            time.sleep(0.2)
        return time.monotonic() - started

    def _control(self, command: str, *words: object) -> None:
        done = self._run(CONTROL, command, self.folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def _run(self, *words: object, **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.work,
            timeout=PATIENCE_SECONDS,
            env={
                **os.environ,
                "SLURM_CONF": str(self.folder / "slurm.conf"),
                "MEGATRON_DPOP_DEVICE": "cpu",
                **{name: str(value) for name, value in settings.items()},
            },
        )


def metrics(run: Path) -> list[dict[str, Any]]:
    """A run's lines so far, without those that time decides."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in found]


def heartbeat(run: Path) -> dict[str, Any]:
    path = run / "heartbeat.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "none", "saved": None}
