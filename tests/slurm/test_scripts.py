"""The scripts themselves: shellcheck, help, and refusal to be run the wrong way."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, SCRIPTS

SHELL_SCRIPTS = sorted([*SCRIPTS.glob("*.s*"), *(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"])
SUBMITTED = [*sorted(path.name for path in SCRIPTS.glob("*.sbatch")), "pipeline.sh"]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path", ROOT, script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SUBMITTED)
def test_help(script: str) -> None:
    done = subprocess.run([SCRIPTS / script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"examples/slurm/{script}" in done.stdout


@pytest.mark.parametrize("script", SUBMITTED)
def test_given_to_sbatch_itself_it_says_how_to_run_it(script: str, tmp_path: Path) -> None:
    """SLURM runs a copy, beside which nothing of this folder lies."""
    copy = tmp_path / "slurm_script"
    copy.write_text((SCRIPTS / script).read_text())
    done = subprocess.run(["bash", copy, "config.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run this script itself" in done.stderr


def test_the_cluster_tool_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "slurm_cluster.sh"
    for words, reason in (
        (["start", tmp_path / ("long" * 30)], "is too long for the sockets in it; choose a folder of at most"),
        (["start", tmp_path / "c", "0"], "NODES is '0'; give a number from 1 to 99"),
    ):
        done = subprocess.run([tool, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert reason in done.stderr or "apt-get install slurm-wlm munge" in done.stderr
    help_text = subprocess.run([tool, "--help"], capture_output=True, text=True, check=False)
    assert help_text.returncode == 0
    assert "kill-node FOLDER n2" in help_text.stdout
