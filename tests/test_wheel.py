"""The wheel in an environment of its own, its commands run from an empty folder: it lacks nothing of the checkout.

Its extras it does lack, and so names a command for each, which is tried.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import model_and_pairs, write_config

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _run(*words: object, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"MEGATRON_DPOP_DEVICE": "cpu", **variables}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


def _done(*words: object, cwd: Path) -> str:
    done = _run(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel and installs it with what it requires, in the lock file's versions; where the commands are."""
    folder = tmp_path_factory.mktemp("wheel")
    _done(UV, "build", "--quiet", "--out-dir", folder / "dist", cwd=ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    locked = _done(UV, "export", "--quiet", "--locked", "--no-hashes", "--no-emit-project", cwd=ROOT)
    (folder / "locked.txt").write_text(locked)
    _done(UV, "venv", "--quiet", "--python", sys.executable, folder / "empty", cwd=folder)
    into = folder / "empty" / "bin"
    _done(
        *(UV, "pip", "install", "--quiet", "--python", into / "python"),
        *("--constraint", folder / "locked.txt", wheel),
        cwd=folder,
    )
    return into


def test_its_commands_work_without_the_checkout(commands: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    files = tmp_path / "files"
    files.mkdir()
    model_and_pairs(files, 12)
    tree = write_config(files, files / "model", train={"steps": 2}, checkpoint={"export_hf": True}, run={"dir": "run"})
    (files / "config.yaml").write_text(yaml.safe_dump(tree))
    for program in ("megatron-dpop", "checkpoint-convert"):
        assert _done(commands / program, "--version", cwd=empty).startswith(f"{program} ")
    _done(commands / "megatron-dpop", "data", "inspect", files / "pairs.jsonl", cwd=empty)
    _done(commands / "megatron-dpop", "train", files / "config.yaml", cwd=empty)
    _done(commands / "megatron-dpop", "report", "run", "--output", "report.html", cwd=empty)
    assert "drawAll()" in (empty / "report.html").read_text(), "scripts and styles are in the wheel"
    _done(commands / "checkpoint-convert", "verify", "run/hf", "run/checkpoints", cwd=empty)
    where = _done(commands / "python", "-c", "import megatron_dpop; print(megatron_dpop.__file__)", cwd=empty)
    assert str(commands.parent) in where


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model_and_pairs(folder, 12)
    tree = write_config(folder, folder / "model", logging={"wandb": "mine"})
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("eval", ("eval", "model", "--tasks", "gsm_symbolic")),
        ("quickstart", ("data", "make", "gsm-symbolic", "--output", "made")),
        ("wandb", ("train", "config.yaml")),
    ],
)
def test_an_extra_that_it_lacks_is_named_with_a_command_that_adds_it(
    commands: Path, files: Path, extra: str, words: tuple[str, ...]
) -> None:
    found = _run(commands / "megatron-dpop", *words, cwd=files)
    assert found.returncode == 2, found.stderr
    (line,) = found.stderr.strip().splitlines()
    assert f'install it with: pip install ".[{extra}]" in a clone of the project' in line
    # The same environment, running a checkout: the command names both, and is run as far as saying what it would do.
    found = _run(commands / "python", "-m", "megatron_dpop", *words, cwd=files, PYTHONPATH=str(ROOT))
    assert found.returncode == 2, found.stderr
    (line,) = found.stderr.strip().splitlines()
    command = line.partition("install it with: ")[2].removesuffix(", or set the key to null")
    assert f"{ROOT}[{extra}]" in command
    path = f"{Path(UV).parent}{os.pathsep}{os.environ['PATH']}"
    tried = _run("bash", "-c", f"{command} --dry-run", cwd=files, PATH=path)
    assert tried.returncode == 0, tried.stderr
    assert "Would" in tried.stdout + tried.stderr
