"""The commands on files that try to run code: by an audit hook in every process nothing is run, and nobody is asked.

Of checkpoints alone, in one process: `test_checkpoints.py`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from tests.hostile import payloads
from tests.tiny import write_config, write_model, write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WATCHED = Path(__file__).parent / "watched"


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canary, self.log = folder / "canary", folder / "log"
        write_pairs(folder / "pairs.jsonl", 8)
        self.model = write_model(folder / "model")
        self.megatron = folder / "megatron"
        hf_to_megatron(self.model, self.megatron, progress=False)

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """With a terminal's patience: whoever asks "run custom code?" gets a yes."""
        path = os.pathsep.join([str(WATCHED), os.environ.get("PYTHONPATH", "")])
        watched = {"PYTHONPATH": path, "HOSTILE_CANARY": str(self.canary), "HOSTILE_LOG": str(self.log)}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            input="y\n" * 9,
            env={**os.environ, **watched, "MEGATRON_DPOP_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"},
        )

    def config(self, model: Path, name: str) -> Path:
        tree = write_config(self.folder, model, train={"steps": 2}, run={"dir": str(self.folder / f"run {name}")})
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def nothing_ran(self) -> bool:
        return not self.canary.exists() and not self.log.exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("hostile"))


def test_the_hook_sees_what_is_run(world: World) -> None:
    torch.save(payloads.Payload(world.folder / "control", 0), world.folder / "payload.pt")
    path = str(world.folder / "payload.pt")
    world.canary, kept = world.folder / "control", world.canary
    try:
        world.run("-c", f"import torch; torch.load({path!r}, weights_only=False)")
        assert "os.system" in world.log.read_text()
    finally:
        world.canary = kept
        world.log.unlink(missing_ok=True)


MEGATRON: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    "beside": (payloads.unpickled_beside_tensors, 0),
    "common": (payloads.common_file, 0),
    "metadata": (payloads.metadata_file, 2),
    "tensor": (payloads.tensor, 2),
}


@pytest.mark.parametrize("name", MEGATRON)
def test_converting_runs_nothing(world: World, name: str) -> None:
    make, code = MEGATRON[name]
    checkpoint = payloads.copy(world.megatron, world.folder / f"converted {name}")
    make(checkpoint, world.canary)
    done = world.run(
        "-m", "checkpoint_convert.commands", "megatron-to-hf", checkpoint, world.folder / f"out {name}", "--quiet"
    )
    assert done.returncode in (code, 2), done.stderr
    done = world.run("-m", "checkpoint_convert.commands", "verify", world.model, checkpoint, "--quiet")
    assert done.returncode in (code, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert world.nothing_ran()


@pytest.mark.parametrize("command", ["train", "reference", "analyze"])
def test_training_commands_run_nothing_of_a_checkpoint(world: World, command: str) -> None:
    checkpoint = payloads.copy(world.megatron, world.folder / f"used by {command}")
    payloads.unpickled_beside_tensors(checkpoint, world.canary)
    words: list[object] = [command, world.config(checkpoint, command)]
    if command == "analyze":
        words = [command, checkpoint, "--pairs", world.folder / "pairs.jsonl", "--json"]
    done = world.run("-m", "megatron_dpop", *words)
    assert done.returncode == 0, done.stderr
    assert world.nothing_ran()


@pytest.mark.parametrize("make", [payloads.bin_weights, payloads.remote_code])
def test_a_model_folder_runs_nothing(world: World, make: Callable[[Path, Path], None]) -> None:
    folder = payloads.copy(world.model, world.folder / make.__name__)
    make(folder, world.canary)
    done = world.run("-m", "megatron_dpop", "train", "--dry-run", world.config(folder, make.__name__))
    assert done.returncode == 2, done.stderr
    assert "refused, it names" in done.stderr or "code of its own (auto_map), which is never run" in done.stderr
    assert world.nothing_ran()


@pytest.mark.parametrize("make", [payloads.bin_weights, payloads.remote_code])
def test_evaluation_runs_nothing(world: World, make: Callable[[Path, Path], None]) -> None:
    pytest.importorskip("lm_eval")
    folder = payloads.copy(world.model, world.folder / f"evaluated {make.__name__}")
    make(folder, world.canary)
    done = world.run("-m", "megatron_dpop", "eval", folder, "--tasks", "gsm_symbolic", "--limit", "1")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert world.nothing_ran()
