"""Training on a GPU with Transformer Engine, beside the same training in fp32 on the CPU.

The case of the CPU in bf16 is there so that the comparison itself is tested on every machine.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.tiny import write_config, write_model, write_pairs

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpu = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")]
two_gpus = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs")]

# Every dimension is a multiple of 128, as blockwise FP8 scales blocks of 128 x 128.
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Of a sum of log-probabilities: bf16 keeps 8 bits, FP8 (e4m3) 4.
BF16, FP8 = 0.01, 0.1

CASES = {
    "bf16 on the CPU": ("cpu", {}, BF16, (pytest.mark.slow,)),
    "bf16": ("cuda", {}, BF16, gpu),
    "FP8, tensorwise": ("cuda", {"precision": {"fp8": "tensorwise"}}, FP8, gpu),
    "FP8, tensorwise, ends in bf16": ("cuda", {"precision": {"fp8": "tensorwise", "bf16_end_layers": 1}}, FP8, gpu),
    "FP8, blockwise": ("cuda", {"precision": {"fp8": "blockwise"}}, FP8, gpu),
    "FP8, blockwise, weights too": ("cuda", {"precision": {"fp8": "blockwise", "fp8_params": True}}, FP8, gpu),
    "FP8, delayed": ("cuda", {"precision": {"fp8": "delayed"}}, FP8, gpu),
    "layers recomputed": ("cuda", {"train": {"recompute": "full"}}, BF16, gpu),
    "attention recomputed": ("cuda", {"train": {"recompute": "selective"}}, BF16, gpu),
    # Megatron-Core offloads tensors of 2^20 entries and more: 4096 tokens of 256.
    "activations offloaded": (
        "cuda",
        {"train": {"offload_activations": True}, "data": {"row_tokens": 4096}},
        BF16,
        gpu,
    ),
    "optimizer offloaded": ("cuda", {"optimizer": {"offload": True}}, BF16, gpu),
    "moments in bf16": ("cuda", {"optimizer": {"state": "bf16"}}, BF16, gpu),
    "fp32, TF32 in the layers": ("cuda", {"precision": {"params": "fp32"}}, 1e-3, gpu),
    "tensor-parallel, overlapped": ("cuda", {"parallel": {"tensor": 2, "overlap_tensor": True}}, BF16, two_gpus),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_model(folder / "model", **SHAPE)
    write_pairs(folder / "pairs.jsonl", 64)
    return folder


@pytest.fixture(scope="module")
def fp32(world: Path) -> list[dict[str, float]]:
    return _train(world, "fp32_cpu", "cpu", {"precision": {"params": "fp32"}}, steps=2)


def _train(world: Path, name: str, device: str, sections: dict[str, Any], *, steps: int) -> list[dict[str, float]]:
    """Metrics of a run by the command itself, on the CPU or on as many GPUs as its layout needs."""
    tree = write_config(
        world,
        world / "model",
        precision={"params": "bf16"},
        data={"row_tokens": 256},
        optimizer={"lr": 2e-4},
        train={"steps": steps, "global_batch_pairs": 8},
        run={"dir": str(world / name)},
    )
    for section, keys in sections.items():
        tree[section] = {**tree.get(section, {}), **keys}
    config = world / f"{name}.yaml"
    config.write_text(yaml.safe_dump(tree))
    ranks = tree.get("parallel", {}).get("tensor", 1)
    environment = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if device == "cpu":
        environment["MEGATRON_DPOP_DEVICE"] = "cpu"
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in range(ranks))
    command = [sys.executable, "-m", "megatron_dpop", "train", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in Path(tree["run"]["dir"], "metrics.jsonl").read_text().splitlines()]


def _cases(names: list[str]) -> list[Any]:
    return [pytest.param(name, id=name, marks=CASES[name][3]) for name in names]


@pytest.mark.parametrize("name", _cases(list(CASES)))
def test_log_probabilities_are_those_of_fp32(name: str, world: Path, fp32: list[dict[str, float]]) -> None:
    device, sections, tolerance, _ = CASES[name]
    found = _train(world, name.replace(" ", "_"), device, sections, steps=2)
    for key in ("logps/chosen", "logps/rejected"):
        assert found[0][key] == pytest.approx(fp32[0][key], rel=tolerance), key
    # Delayed scales follow what came before, the reference's passes among them; overlapped communication cuts products
    # into pieces in passes with gradients alone.
    if "delayed" not in name and "overlapped" not in name:
        assert found[0]["reference/drift"] == 0.0
        assert found[0]["loss"] == pytest.approx(fp32[0]["loss"], abs=1e-6)
    if "delayed" not in name:  # whose penalty acts where policy and reference differ
        assert found[0]["grad_norm"] == pytest.approx(fp32[0]["grad_norm"], rel=3 * tolerance)
    # The second step shows that the first one moved the weights that were loaded.
    for key in ("logps/chosen", "logps/rejected"):
        assert found[1][key] == pytest.approx(fp32[1][key], rel=tolerance), key


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "delayed"])
def test_fifty_steps_in_fp8_follow_bf16(recipe: str, world: Path) -> None:
    """Both learn: the preferred answers' margin over the last ten steps agrees, and has grown."""
    plain = _train(world, f"fifty_bf16_{recipe}", "cuda", {}, steps=50)
    found = _train(world, f"fifty_{recipe}", "cuda", {"precision": {"fp8": recipe}}, steps=50)
    margins = [sum(step["rewards/margins"] for step in run[-10:]) / 10 for run in (plain, found)]
    assert min(margins) > 0.5
    assert margins[1] == pytest.approx(margins[0], rel=0.3)


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")
def test_adapters_train_as_in_fp32(world: Path) -> None:
    lora = {"lora": {"rank": 8}}
    expected = _train(world, "lora_cpu", "cpu", {"precision": {"params": "fp32"}, **lora}, steps=2)
    found = _train(world, "lora_gpu", "cuda", lora, steps=2)
    assert found[0]["reference/drift"] == 0.0
    for step, wanted in zip(found, expected, strict=True):
        assert step["logps/chosen"] == pytest.approx(wanted["logps/chosen"], rel=BF16)
    # Of the first step alone: later, rounding decides on which side of the hinge a pair lies.
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=3 * BF16)


@pytest.mark.parametrize(
    ("device", "sections"),
    [
        pytest.param("cpu", {}, id="on the CPU", marks=pytest.mark.slow),
        pytest.param("cuda", {}, id="plain", marks=gpu),
        pytest.param("cuda", {"optimizer": {"state": "bf16"}}, id="moments in bf16", marks=gpu),
        pytest.param("cuda", {"optimizer": {"offload": True}}, id="optimizer offloaded", marks=gpu),
        pytest.param("cuda", {"precision": {"fp8": "tensorwise"}}, id="FP8", marks=gpu),
    ],
)
def test_a_run_goes_on_from_its_last_checkpoint_as_it_was(
    device: str, sections: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    kept = {"checkpoint": {"every": 2, "async": False}, "run": {"dir": str(tmp_path / "run")}, **sections}
    whole = _train(world, tmp_path.name, device, kept, steps=4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "iter_0000004")
    again = _train(world, tmp_path.name, device, kept, steps=4)
    assert len(again) == 4
    for step, expected in zip(again[2:], whole[2:], strict=True):
        assert step["perf/step_seconds"] != expected["perf/step_seconds"]  # it was trained anew
        assert step["logps/chosen"] == pytest.approx(expected["logps/chosen"], rel=1e-3)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=BF16)


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")
def test_deterministic_runs_are_equal_to_the_bit(world: Path) -> None:
    runs = [_train(world, f"same_{at}", "cuda", {"train": {"deterministic": True}}, steps=4) for at in range(2)]
    for first, second in zip(*runs, strict=True):
        assert {k: v for k, v in first.items() if "perf/" not in k} == {
            k: v for k, v in second.items() if "perf/" not in k
        }
