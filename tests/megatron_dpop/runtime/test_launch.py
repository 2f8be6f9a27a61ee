"""Ranks that a command starts on this machine."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from megatron_dpop.runtime import exits
from megatron_dpop.runtime.launch import exit_code_of
from tests.tiny import write_config, write_model, write_pairs


@pytest.mark.slow
def test_ranks_import_the_package_of_the_command_that_started_them(tmp_path: Path) -> None:
    """Also in a folder that holds another one of that name: a checkout, or what is left of one."""
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 8)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(write_config(tmp_path, tmp_path / "model")), encoding="utf-8")
    (tmp_path / "megatron_dpop").mkdir()
    (tmp_path / "megatron_dpop" / "__init__.py").write_text("raise ImportError('another checkout')\n", encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("megatron-dpop"), "reference", tmp_path / "config.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "says"), [(1, "rank 3 ended with exit code 1"), (-9, "Signal 9 (SIGKILL) received by PID 12")]
)
def test_a_rank_that_left_no_word_is_named(
    code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(exits.LAUNCHED_VARIABLE, "")  # which `exit_code_of` sets: to be restored
    monkeypatch.setattr(logging, "disable", lambda _: None)
    failure = ProcessFailure(local_rank=3, pid=12, exitcode=code, error_file="")

    def fail() -> None:
        raise ChildFailedError("train", {3: failure})

    assert exit_code_of(fail) == exits.FAILED
    assert says in capsys.readouterr().err
