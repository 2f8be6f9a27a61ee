"""The command as a user starts it, and the small world that it trains on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.processes import descendants
from tests.tiny import write_config, write_model, write_pairs

COMMAND = Path(sys.executable).with_name("megatron-dpop")
PATIENCE_SECONDS = 300


def write_world(folder: Path, **sections: object) -> Path:
    """A model, pairs and a config for two ranks; returns the config's path."""
    write_model(folder / "model", dtype="bfloat16")
    write_pairs(folder / "pairs.jsonl", 30)
    path = folder / "config.yaml"
    tree = write_config(folder, folder / "model", **{"parallel": {"tensor": 2}, **sections})
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def start(*words: object, before: tuple[str, ...] = (), **options: object) -> subprocess.Popen[str]:
    """`megatron-dpop WORDS` on the CPU, with its output piped together; `before` stands before the command."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [*before, str(COMMAND), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.STDOUT),  # type: ignore[arg-type]
        text=True,
        env={**environment, "MEGATRON_DPOP_DEVICE": "cpu", **options.pop("env", {})},  # type: ignore[dict-item]
        **options,  # type: ignore[call-overload]
    )


def printed(*words: object) -> str:
    """What `megatron-dpop WORDS` prints on the CPU, without what it says on standard error; it has to succeed."""
    with start(*words, stderr=subprocess.PIPE) as process:
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> None:
    """Until the condition holds, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}:\n{process.stdout and process.stdout.read()}"
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of the ranks, by their numbers."""
    found = {}
    for pid in descendants(process.pid) - {process.pid}:
        try:
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != process.pid:
                continue
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"RANK="):
                    found[int(variable[5:])] = pid
        except (OSError, ValueError):
            continue
    return found


def lines(run: Path) -> int:
    """Of metrics, so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
