"""The examples of docs/api.md, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpop_base.errors import UserError
from megatron_dpop import load_config, plan_config
from tests.tiny import write_config, write_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "api"
PAIR = (450, 230, 160)


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


def test_a_path_may_be_text_and_numbers_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "config.yaml")
    Path(path).write_text(
        yaml.safe_dump(write_config(tmp_path, write_model(tmp_path / "model"), data={"row_tokens": 2048}))
    )
    assert load_config(path).loss.name == "dpop"
    with pytest.raises(UserError, match="cannot read the config"):
        load_config(str(tmp_path / "none.yaml"))
    assert plan_config(path, gpus=2, pair=PAIR).memory.total > 0
    for gpus in (0, -1):
        with pytest.raises(UserError, match=f"gpus: {gpus} is not a multiple"):
            plan_config(path, gpus=gpus, pair=PAIR)
    for pair in ((-5, 0, 0), (450, 230, 300), (450, 230)):
        with pytest.raises(UserError, match="in tokens; common is part of completion"):
            plan_config(path, gpus=1, pair=pair)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="device: 'tpu' is not known; give one of h100"):
        plan_config(path, gpus=1, pair=PAIR, device="tpu")
