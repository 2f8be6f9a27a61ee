"""The examples of docs/api.md, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "api"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown"),
    [("train_tiny.py", "step 7: loss "), ("megatron_loop.py", "log-probabilities differ from Megatron-Core's by ")],
)
def test_example_runs(name: str, shown: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown in done.stdout
