"""The project from Python: what a script or a notebook calls in place of the command line."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from checkpoint_convert.locate import assets_folder
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from dpop_base.run_names import HF, METRICS
from megatron_dpop.config import load_config
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.plan.choice import check_choice
from megatron_dpop.plan.from_config import choice_of, pair_workload
from megatron_dpop.plan.hardware import DEVICES
from megatron_dpop.plan.plan import Plan, Setting, make_plan


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder."""

    path: Path

    @property
    def model(self) -> Path:
        """The exported model, which `transformers` loads."""
        return self.path / HF

    def metrics(self) -> list[dict[str, Any]]:
        """Returns one table of metrics a step, as `metrics.jsonl` has them."""
        lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def train(config: str | Path | Mapping[str, Any], *overrides: str) -> TrainedRun:
    """Trains as `megatron-dpop train CONFIG [--key.sub value ...]` does, in processes of its own.

    `config` is a YAML file, or the same as a mapping. A run that was stopped goes on. Raises UserError with the
    command's line where the input is bad, and RuntimeError where the run fails; what it says goes to standard error.
    """
    with tempfile.TemporaryDirectory(prefix="megatron-dpop-") as folder:
        path = Path(folder) / "config.yaml" if isinstance(config, Mapping) else Path(config)
        if isinstance(config, Mapping):
            path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        resolved = load_config(path, overrides)
        command = [sys.executable, "-m", "megatron_dpop", "train", str(path), *overrides]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            last = ""
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
    if process.returncode == 2:
        raise UserError(last)
    if process.returncode != 0:
        raise RuntimeError(f"training ended with exit code {process.returncode}: {last}")
    return TrainedRun(Path(resolved.run.dir))


def plan_config(
    config: str | Path | Mapping[str, Any], *, gpus: int, device: str = "h100", pair: tuple[int, int, int]
) -> Plan:
    """Returns memory, time and communication of a config's layout on `gpus` GPUs, for pairs of given lengths.

    `pair`: tokens of the prompt, of each completion, and of what the two completions begin with in common.
    """
    if isinstance(config, Mapping):
        resolved = config_from_dict(dict(config), origin="config")
    else:
        resolved = load_config(Path(config))
    if device not in DEVICES:
        raise UserError(f"device: {device!r} is not known; give one of {', '.join(DEVICES)}")
    if len(pair) != 3 or min(pair[:2]) < 1 or not 0 <= pair[2] <= pair[1]:
        raise UserError(f"pair: {pair!r} is not (prompt, completion, common) in tokens; common is part of completion")
    architecture = read_architecture(assets_folder(Path(resolved.model.path)))
    prompt, completion, common = pair
    workload = pair_workload(resolved, prompt=prompt, completion=completion, common=common)
    one = choice_of(resolved)
    of_one_replica = resolved.parallel.fewest_ranks
    if gpus < 1 or gpus % of_one_replica:
        raise UserError(f"gpus: {gpus} is not a multiple of {of_one_replica}, the GPUs of one replica of the model")
    setting = Setting(architecture, workload, DEVICES[device])
    choice = choice_of(resolved, data=gpus // one.devices)
    check_choice(architecture, choice, capacity_tokens=workload.capacity_tokens)
    return make_plan(setting, choice)
