"""Places that cannot be written or do not exist: one line that names them, exit code 2, and nothing half-written."""

import errno
import os
from pathlib import Path

import pytest
import yaml

from checkpoint_convert.commands import run as convert
from dpop_base.os_errors import FIXES, explain_os_error
from megatron_dpop.commands.main import run
from megatron_dpop.runtime import exits
from tests.tiny import write_config, write_model, write_pairs

A_FILE = "/dev/null/below"  # as if it were a folder
NO_RIGHTS = "/sys/kernel/megatron_dpop"  # not even root's
GONE = "/proc/megatron_dpop"  # no folder can be made there


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    write_model(folder / "model", num_hidden_layers=1)
    write_pairs(folder / "pairs.jsonl", 8)
    (folder / "config.yaml").write_text(yaml.safe_dump(write_config(folder, folder / "model")))
    return folder


def _refused(code: int, place: str, captured: pytest.CaptureFixture[str]) -> str:
    errors = captured.readouterr().err
    lines = [line for line in errors.splitlines() if "error" in line]
    assert code == exits.BAD_INPUT, errors
    assert len(lines) == 1, errors
    assert place in lines[0]
    assert "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize("place", [A_FILE, NO_RIGHTS, GONE])
def test_data_make(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["data", "make", "gsm-symbolic", "--output", place, "--train", "4", "--validation", "0"])
    _refused(code, place, capsys)


@pytest.mark.parametrize("place", [A_FILE, NO_RIGHTS, GONE])
def test_a_token_cache(
    world: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    _refused(run(["train", str(world / "config.yaml"), "--dry-run"]), place, capsys)


def test_a_home(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", A_FILE)
    line = _refused(run(["train", str(world / "config.yaml"), "--dry-run"]), A_FILE, capsys)
    assert "XDG_CACHE_HOME" in line


@pytest.mark.parametrize("place", [A_FILE, NO_RIGHTS, GONE])
def test_a_converted_folder(world: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(convert(["hf-to-megatron", str(world / "model"), place, "--quiet"]), place, capsys)


@pytest.mark.parametrize("place", [A_FILE, NO_RIGHTS, GONE])
def test_a_run(world: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a rank is started."""
    _refused(run(["train", str(world / "config.yaml"), "--run.dir", place]), place, capsys)


@pytest.mark.parametrize("number", sorted(FIXES))
def test_each_refusal_has_its_fix(number: int) -> None:
    line = explain_os_error(OSError(number, os.strerror(number), "some/where"))
    assert line is not None
    assert line.startswith(f"some/where: {os.strerror(number)}; ")
    assert explain_os_error(Exception(f"I/O error: refused (os error {number})")) is not None


@pytest.mark.parametrize("number", [errno.EIO, errno.ECONNRESET, errno.ESTALE, errno.ENOMEM])
def test_what_a_restart_may_clear_is_not_the_users(number: int) -> None:
    assert explain_os_error(OSError(number, os.strerror(number), "some/where")) is None
