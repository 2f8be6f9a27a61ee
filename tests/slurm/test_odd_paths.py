"""Folders with spaces, quotes and signs that shells, YAML and SLURM have a use for.

No cluster is needed: a stand-in for sbatch writes down with which words the scripts called it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import CONTROL, SCRIPTS
from tests.tiny import write_config, write_model, write_pairs

NAMES = ("exp #3", "it's", 'a "b" $(touch executed) `touch executed`', "50% & more; rest")
SBATCH = """#!/usr/bin/env bash
for word in "$@"; do printf '%s\\0' "$word"; done >>"$CALLS"
printf '\\n\\0' >>"$CALLS"
echo 17
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd paths")
    write_model(folder / "model", num_hidden_layers=1)
    write_pairs(folder / "pairs.jsonl", 8)
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(SBATCH)
    (folder / "bin" / "sbatch").chmod(0o755)
    return folder


def _submitted(world: Path, script: str, *words: str) -> list[list[str]]:
    """The words of each call of sbatch that submits."""
    calls = world / "calls"
    calls.unlink(missing_ok=True)
    path = f"{world / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"JOB_NODES": "1", "JOB_RANKS_PER_NODE": "1", "JOB_GPUS_PER_NODE": "0", "JOB_EXTRA": ""}
    done = subprocess.run(
        [SCRIPTS / script, *words],
        cwd=world,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "CALLS": str(calls), "MEGATRON_DPOP_DEVICE": "cpu", **settings},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [call.strip("\0").split("\0") for call in calls.read_text().split("\n\0")]
    return [call for call in found if "--parsable" in call]


@pytest.mark.parametrize("name", [" ".join(NAMES)])
def test_a_sweep_keeps_its_runs_apart_whatever_its_folder_is_called(world: Path, name: str) -> None:
    tree = write_config(world, world / "model", run={"dir": str(world / name)})
    config = world / f"{name.replace('/', '')}.yaml"
    config.write_text(yaml.safe_dump(tree))
    reference, array = _submitted(world, "sweep.sbatch", str(config), "loss.beta=0.1,0.3")
    overrides = dict(
        word.removeprefix("--").split("=", 1) for word in reference if word.startswith(("--run.", "--ref"))
    )
    assert yaml.safe_load(overrides["run.dir"]) == f"{world / name}/reference_pass"
    assert yaml.safe_load(overrides["reference.cache"]) == f"{world / name}/reference"
    assert array[-2:] == [str(config), "loss.beta=0.1,0.3"]
    assert not list(world.rglob("executed"))


@pytest.mark.parametrize("name", NAMES)
def test_the_clusters_environment_is_quoted(tmp_path: Path, name: str) -> None:
    script = f'eval "$({shlex.quote(str(CONTROL))} env {shlex.quote(str(tmp_path / name))})"; printf %s "$SLURM_CONF"'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / name}/slurm.conf"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 9, 126, 127, 130, 137, 143])
def test_jobs_know_no_other_exit_codes(code: int) -> None:
    script = 'source "$MEGATRON_DPOP_SCRIPTS/common.sh"; known_code "$1"'
    environment = {**os.environ, "MEGATRON_DPOP_SCRIPTS": str(SCRIPTS)}
    words = ["bash", "-c", script, "test", str(code)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (code if code in (0, 2, 3, 75) else 1)
