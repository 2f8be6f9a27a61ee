"""Ranks that a command starts on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
