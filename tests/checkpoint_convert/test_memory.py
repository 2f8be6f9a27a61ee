"""Private memory does not follow the size of a tensor: one of a gigabyte takes what its pieces take."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from checkpoint_convert.tensors.safetensors_file import safetensors_header
from dpop_base.architectures import read_architecture
from tests.checkpoint_convert.adapters import ALPHA, RANK, save_adapters
from tests.dpop_base.architectures.test_published import PUBLISHED
from tests.dpop_base.architectures.test_read import LLAMA

VOCABULARY, HIDDEN = 500_000, 1024  # 1.02 GB of embedding in bf16
LIMIT, LIMIT_30B = 500 << 20, 400 << 20
QWEN3_30B: dict[str, Any] = PUBLISHED["Qwen/Qwen3-30B-A3B"]["config"]
PYTORCH = 300 << 20  # what importing it takes


def private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_of(*arguments: str) -> int:
    process = subprocess.Popen([sys.executable, "-m", "checkpoint_convert.commands", *arguments, "--quiet"])
    peak = 0
    while process.poll() is None:
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0
    return peak


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_tensor_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 1024, "num_hidden_layers": 2}
    assert write_zeros(source, **sizes, num_attention_heads=8) > 2 * LIMIT
    assert peak_of("hf-to-megatron", str(source), str(tmp_path / "megatron")) < LIMIT
    assert peak_of("megatron-to-hf", str(tmp_path / "megatron"), str(tmp_path / "back")) < LIMIT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_merging_adapters_into_a_larger_tensor(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    sizes = {"vocab_size": 1000, "hidden_size": 4096, "intermediate_size": 65_536, "num_hidden_layers": 1}
    assert write_zeros(source, **sizes, num_attention_heads=32) > 2 * LIMIT
    [lora] = save_adapters([source], torch.bfloat16)
    assert peak_of("megatron-to-hf", str(lora), str(tmp_path / "merged")) < LIMIT + PYTORCH
    peak_of("megatron-to-hf", str(lora), str(tmp_path / "adapter"), "--adapter")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    shards = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(tmp_path / "merged" / shards[name], "pt") as file:
        rows = file.get_slice(name)[-3:].double()
    a, b = (adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"].double() for part in "AB")
    torch.testing.assert_close(rows, ALPHA / RANK * b[-3:] @ a, rtol=2.0**-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_as_many_tensors_as_a_mixture_of_30b_has(tmp_path: Path) -> None:
    """The layers and experts of Qwen3-30B-A3B, 18,867 tensors, each far smaller."""
    source = tmp_path / "hf"
    write_zeros(source, QWEN3_30B, hidden_size=64, moe_intermediate_size=8, num_attention_heads=4, head_dim=16)
    assert len(from_megatron(RULES["qwen3_moe"], read_architecture(source))) > 18_000
    assert peak_of("hf-to-megatron", str(source), str(tmp_path / "megatron")) < LIMIT_30B
    assert peak_of("megatron-to-hf", str(tmp_path / "megatron"), str(tmp_path / "back")) < LIMIT_30B


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_layer_as_large_as_a_mixture_of_30b_has(tmp_path: Path) -> None:
    """All experts of a layer are one stacked tensor in Megatron's checkpoint, of 805 MB."""
    source = tmp_path / "hf"
    assert write_zeros(source, QWEN3_30B, num_hidden_layers=1, vocab_size=1000) > 2 * LIMIT_30B
    assert peak_of("hf-to-megatron", str(source), str(tmp_path / "megatron")) < LIMIT_30B
    assert peak_of("megatron-to-hf", str(tmp_path / "megatron"), str(tmp_path / "back")) < LIMIT_30B


def write_zeros(folder: Path, like: dict[str, Any] = LLAMA, **sizes: int) -> int:
    """A model of these sizes in bf16, all zeros, in a file that takes no disk; returns its bytes."""
    folder.mkdir()
    config = like | sizes | {"tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    a = read_architecture(folder)
    recipes = from_megatron(RULES[a.family], a)
    header = safetensors_header((recipe.name, recipe.shape, "bf16") for recipe in recipes)
    num_bytes = 2 * sum(math.prod(recipe.shape) for recipe in recipes)
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + num_bytes)
    return num_bytes
