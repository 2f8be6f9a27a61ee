"""Memory and time of checkpoint conversion, both ways, against `cp` and `sync` of the same bytes.

Weights are random; the folder needs about three times the largest model's bytes, and is emptied again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report
from benchmarks.subcommand import subcommand
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.safetensors_file import safetensors_header
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError

SHARD_BYTES = 5_000_000_000  # what models are usually published in
BLOCK_BYTES = 16 << 20
# Hidden, layers, heads, key/value heads, feed-forward, tied: Qwen2.5's published shapes, and one for a first look.
SHAPES = {
    "tiny": (64, 2, 4, 2, 96, True),
    "0.5B": (896, 24, 14, 2, 4864, True),
    "1.5B": (1536, 28, 12, 2, 8960, True),
    "7B": (3584, 28, 28, 4, 18944, False),
}


@dataclass(frozen=True)
class Measurement:
    shape: str
    what: str
    num_bytes: int
    seconds: float
    private_bytes: int  # peak above the interpreter's own; mapped and cached file pages do not count

    @property
    def gigabytes_per_second(self) -> float:
        return self.num_bytes / self.seconds / 1e9


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py convert --shapes 0.5B 1.5B 7B --folder /scratch/conversion"
    parser = subcommand(subparsers, __name__, "time and memory of checkpoint conversion", example=example)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B"])
    parser.add_argument("--folder", type=Path, default=Path("conversion-benchmark"), help="scratch; emptied after")
    parser.add_argument("--repeats", type=int, default=1, help="each time is the median of so many")
    parser.add_argument("--transformers", action="store_true", help="also from_pretrained and save_pretrained")


def run(options: argparse.Namespace) -> Report:
    folder = options.folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--folder: {folder} is not empty; name a scratch folder that may be removed")
    found: list[Measurement] = []
    try:
        for shape in options.shapes:
            found += measure(shape, folder / shape, options.repeats, options.transformers)
            shutil.rmtree(folder / shape)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(table(found), [asdict(measurement) for measurement in found])


def measure(shape: str, folder: Path, repeats: int, with_transformers: bool) -> list[Measurement]:
    """One shape: copy, there, back, and perhaps transformers, in turn and after the caches are written out."""
    source, copied, there, back = folder / "hf", folder / "copy", folder / "megatron", folder / "back"
    write_random_model(shape, source)
    num_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    commands: list[tuple[str, list[str], Path]] = [
        ("cp and sync", ["sh", "-c", f"cp -r '{source}' '{copied}' && sync"], copied),
        ("hf-to-megatron", _convert("hf-to-megatron", source, there), there),
        ("megatron-to-hf", _convert("megatron-to-hf", there, back), back),
    ]
    if with_transformers:
        commands.append(("transformers load and save", _transformers(source, copied), copied))
    found = []
    for what, command, target in commands:
        runs = []
        for repeat in range(repeats):
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            runs.append(run_measured(command))
            if target == copied or (target == back and repeat == repeats - 1):
                shutil.rmtree(target)
        seconds = statistics.median(seconds for seconds, _ in runs)
        base = 0 if what == "cp and sync" else interpreter_bytes()
        peak = max(0, max(peak for _, peak in runs) - base)
        found.append(Measurement(shape, what, num_bytes, seconds, peak))
        print(f"{shape} {what}: {seconds:.1f} s, {peak / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return found


def run_measured(command: list[str]) -> tuple[float, int]:
    """Wall-clock seconds and the peak of the process's private memory, sampled every 20 ms."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], private_bytes(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait() != 0:
        raise RuntimeError(f"{command[0]} failed with {process.returncode}")
    seconds = time.monotonic() - began
    watcher.join()
    return seconds, peak[0]


def private_bytes(pid: int) -> int:
    """Anonymous resident memory of a process (Linux)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def interpreter_bytes() -> int:
    """What Python with PyTorch imported takes by itself."""
    code = (
        "import checkpoint_convert.hf_to_megatron, checkpoint_convert.megatron_to_hf, re\n"
        "print(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) * 1024


def write_random_model(shape: str, folder: Path) -> None:
    """A Hugging Face folder in bf16, of random bits, sharded as published models are."""
    hidden, layers, heads, groups, feed_forward, tied = SHAPES[shape]
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": feed_forward,
        "vocab_size": 151936 if tied else 152064,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    a = read_architecture(folder)
    shards: list[list[tuple[str, tuple[int, ...], str]]] = [[]]
    filled = 0
    for recipe in from_megatron(RULES[a.family], a):
        num_bytes = int(np.prod(recipe.shape)) * ITEM_BYTES["bf16"]
        if filled and filled + num_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((recipe.name, recipe.shape, "bf16"))
        filled += num_bytes
    block = np.random.default_rng(0).integers(0, 2**16, BLOCK_BYTES // 2, dtype=np.uint16)
    block &= 0xBFFF  # exponents below the largest: no infinities, no NaN
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        with open(folder / name, "wb") as stream:
            stream.write(safetensors_header(shard))
            left = sum(int(np.prod(size)) * 2 for _, size, _ in shard)
            while left:
                left -= stream.write(memoryview(block).cast("B")[: min(left, BLOCK_BYTES)])
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor, _, _ in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def table(found: list[Measurement]) -> str:
    """Markdown; ratios are to `cp and sync` of the same shape."""
    lines = [
        "| shape | what | GB | seconds | GB/s | ratio to cp and sync | peak private memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    copies = {m.shape: m.seconds for m in found if m.what == "cp and sync"}
    for m in found:
        memory = "" if m.what == "cp and sync" else f"{m.private_bytes / 2**20:.0f} MiB"
        lines.append(
            f"| {m.shape} | {m.what} | {m.num_bytes / 1e9:.2f} | {m.seconds:.1f} | {m.gigabytes_per_second:.2f} "
            f"| {m.seconds / copies[m.shape]:.2f} | {memory} |"
        )
    return "\n".join(lines)


def _convert(direction: str, source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "checkpoint_convert.commands", direction, str(source), str(target), "--quiet"]


def _transformers(source: Path, target: Path) -> list[str]:
    code = (
        "import sys, os\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto', trust_remote_code=False)\n"
        "model.save_pretrained(sys.argv[2])\nos.sync()"
    )
    return [sys.executable, "-c", code, str(source), str(target)]
