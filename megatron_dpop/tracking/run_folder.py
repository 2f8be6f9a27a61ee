"""A run's folder: its config, environment and metrics, and whether it may be continued."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dpop_base.errors import UserError
from dpop_base.files import write_json, write_text
from dpop_base.run_names import CHECKPOINTS, CONFIG, ENVIRONMENT, HEARTBEAT, HF, IDENTITY, INITIAL, METRICS, SAMPLES
from megatron_dpop.config import Config, dump_config
from megatron_dpop.config.load import as_dict, config_from_dict, flatten
from megatron_dpop.config.plain_yaml import read_yaml
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.runtime.devices import on_gpu

# What may change between the starts of one run: nothing that decides what a step computes. (A key, or a section.)
FREE_TO_CHANGE = (
    *("run.", "logging.", "checkpoint.", "parallel."),
    *("reference.cache", "train.recompute", "train.rerun", "train.validate_every"),
)
# A warm-up that is a share of the run grows with it.
GROW_TOGETHER = ("train.steps", "optimizer.warmup_steps")

# What `megatron-dpop reference` leaves in a run's folder before the run.
MADE_BY_REFERENCE = {"reference", INITIAL, HEARTBEAT, IDENTITY}

PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine", "safetensors", "numpy")


class RunFolder:
    """Paths of a run and the writing of its small files."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = Path(config.run.dir)
        self.checkpoints = self.path / CHECKPOINTS
        self.initial = self.path / INITIAL
        self.metrics = self.path / METRICS
        self.health = self.path / "health.jsonl"
        self.samples = self.path / SAMPLES
        self.hf = self.path / HF
        self.adapter = self.path / "adapter"
        self.rows_left_out = self.path / "rows_left_out.jsonl"
        self.rejected_results = self.path / "rejected_results.log"
        self.reference = Path(config.reference.cache) if config.reference.cache else self.path / "reference"

    def check(self) -> None:
        """Raises UserError where the folder belongs to another config."""
        existing = self.path / CONFIG
        if not existing.exists():
            names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
            if {name for name in names - MADE_BY_REFERENCE if not name.startswith(".")}:
                raise UserError(f"run.dir: {self.path} holds other files and no run; choose an empty or new folder")
            return
        try:
            old = _resolved(read_yaml(existing.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError):
            raise UserError(f"{existing}: not readable; choose a new run.dir or delete this run") from None
        new = _resolved(as_dict(self.config))
        is_longer = _grows("train.steps", old, new)
        # First the length, from which a share's steps follow; then what both have, such as a loss's name, then what
        # only one of them knows, such as its options.
        order = {key: (key != "train.steps", None in (old.get(key), new.get(key))) for key in old.keys() | new.keys()}
        for key in sorted(order, key=lambda key: (order[key], key)):
            before, now = old.get(key), new.get(key)
            grows = is_longer and key in GROW_TOGETHER and _grows(key, old, new)
            if not key.startswith(FREE_TO_CHANGE) and not grows and before != now:
                raise UserError(
                    f"run.dir: {self.path} belongs to a run with {key} = {before!r}, not {now!r}; "
                    "choose a new run.dir, or give the old config to continue that run"
                )

    def write_start(self, *, world_size: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG, dump_config(self.config))
        write_json(self.path / ENVIRONMENT, environment(self.config, world_size))

    def write_rows_left_out(self, data: Mapping[str, TokenizedDataset | None]) -> None:
        """Which rows of each source gave no example, and why; no file where all did."""
        lines = [
            {"data": name, "source": source.path, "row": where, "reason": reason}
            for name, dataset in data.items()
            for source in (dataset.sources if dataset else ())
            for where, reason in source.rows_left_out
        ]
        if lines:
            write_lines(self.rows_left_out, lines)


def _grows(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    before, now = old.get(key), new.get(key)
    return isinstance(before, int) and isinstance(now, int) and now > before


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's keys, with the defaults of those that a newer version knows besides, for a kept one."""
    try:
        config = config_from_dict(tree, origin=CONFIG)
        return flatten(as_dict(config))
    except UserError:  # of a version that knew other keys: the first that differs is named
        return flatten(tree)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A file of JSON lines, in place of the one that there is."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds one line of JSON to a file. Raises OSError, which names the file."""
    append_text(path, json.dumps(line) + "\n")


def append_text(path: Path, text: str) -> None:
    """Raises OSError, which names the file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:  # of a full disk, which by itself names nothing
        raise OSError(error.errno, error.strerror, str(path)) from None


def environment(config: Config, world_size: int) -> dict[str, Any]:
    """Versions, devices, layout and the commit of the working directory."""
    model_parallel = config.parallel.model_parallel
    return {
        "command": _command(),
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
        "device": torch.cuda.get_device_name() if on_gpu() else _cpu_name(),
        "world_size": world_size,
        "layout": {
            "tensor": config.parallel.tensor,
            "pipeline": config.parallel.pipeline,
            "virtual_pipeline": config.parallel.virtual_pipeline,
            "context": config.parallel.context,
            "expert": config.parallel.expert,
            "expert_tensor": config.parallel.expert_tensor,
            "data": world_size // model_parallel,
        },
        "git_commit": _git_commit(),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _command() -> list[str]:
    """Returns the command as it was typed: a rank is started as a module, whose file nobody types."""
    program = Path(sys.argv[0])
    typed = "megatron-dpop" if program.parts[-2:] == ("megatron_dpop", "__main__.py") else sys.argv[0]
    return [typed, *sys.argv[1:]]


def _cpu_name() -> str:
    """The processor's name and cores, for reports."""
    name = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    """None where there is no git, or this package is not in a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:
        return None
    return found.stdout.strip() or None
