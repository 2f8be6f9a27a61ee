"""Whoever lacks an extra is told the command that adds it; tests/test_wheel.py tries it where they really lack."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_base.extras import CHECKOUT, install_command
from megatron_dpop.commands.main import run
from tests.tiny import write_config, write_model

EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def _eval(folder: Path) -> list[str]:
    write_model(folder / "model")
    return ["eval", str(folder / "model"), "--tasks", "gsm_symbolic"]


def _make(folder: Path) -> list[str]:
    return ["data", "make", "gsm-symbolic", "--output", str(folder / "pairs")]


def _wandb(folder: Path) -> list[str]:
    import yaml

    tree = write_config(folder, folder / "model", logging={"wandb": "mine"})
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return ["train", str(folder / "config.yaml")]


@pytest.mark.parametrize(
    ("extra", "package", "modules", "words"),
    [
        ("eval", "lm-eval", ("lm_eval", "lm_eval.tasks"), _eval),
        ("quickstart", "reasoning-gym", ("reasoning_gym",), _make),
        ("wandb", "wandb", (), _wandb),
    ],
)
def test_a_missing_extra_is_named_with_a_command_that_adds_it(
    extra: str,
    package: str,
    modules: tuple[str, ...],
    words: Callable[[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # as Python marks a module that cannot be imported
    monkeypatch.setattr("megatron_dpop.tracking.weights_and_biases.find_spec", lambda name: None)
    command_line = words(tmp_path)
    capsys.readouterr()
    assert run(command_line) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is not installed" in line
    assert install_command(extra) in line
    assert any(re.match(rf"{package}\b", requirement) for requirement in EXTRAS[extra])


@pytest.mark.parametrize("extra", ["eval", "quickstart", "wandb"])
def test_the_command_names_this_checkout(extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(install_command(extra))
    assert words[-2:] == ["-e", f"{CHECKOUT}[{extra}]"]
    monkeypatch.chdir(CHECKOUT)
    assert shlex.split(install_command(extra))[-1] == f".[{extra}]"
