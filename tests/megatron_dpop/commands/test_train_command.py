"""`megatron-dpop train` from the command line to an exported model, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs

pytestmark = pytest.mark.slow

TOKENS = [2, 9, 33, 4, 3, 50, 51, 12, 4]


def _command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
    )


def _megatron_logits(checkpoint: Path, dtype: torch.dtype) -> list[list[float]]:
    from megatron_dpop.config.schema import ParallelConfig
    from megatron_dpop.runtime import processes

    device = processes.initialize(ParallelConfig(), seed=0)
    from megatron_dpop.analysis.logits import megatron_logits

    return megatron_logits(checkpoint, [TOKENS], dtype=dtype, device=device)[0].tolist()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_trains_exports_and_the_export_is_the_trained_model(tmp_path: Path, precision: str, tolerance: float) -> None:
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    # 3 heads on 2 tensor-parallel ranks: trained with an added zero head, exported without it.
    shape = {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "tie_word_embeddings": True,
    }
    write_model(tmp_path / "model", dtype=str(dtype).removeprefix("torch."), **shape)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(
        tmp_path,
        tmp_path / "model",
        precision={"params": precision},
        parallel={"tensor": 2, "pad_heads": True},
        data={"validation": str(tmp_path / "pairs.jsonl")},
        checkpoint={"export_hf": True},
        logging={"tensorboard": True},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    done = _command("megatron_dpop", "train", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    present = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "reference",
        "tensorboard",
        "hf",
    } <= present
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["reference/drift"] == 0.0
    assert [line["step"] for line in lines] == [0, 1, 2, 3]

    exported = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=dtype)
    with torch.no_grad():
        theirs = exported(torch.tensor([TOKENS])).logits[0].float()
    ours = torch.tensor(run_ranks(_megatron_logits, 1, run / "checkpoints", dtype)[0])
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    with torch.no_grad():
        before = original(torch.tensor([TOKENS])).logits[0].float()
    assert (ours - before).abs().max() > 2 * tolerance * theirs.abs().max(), "training changed nothing"

    again = _command("megatron_dpop", "train", tmp_path / "config.yaml")
    assert again.returncode == 0, again.stderr
    verified = _command("checkpoint_convert.commands", "verify", run / "hf", run / "checkpoints")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_lora_leaves_a_merged_model_and_a_peft_folder(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    write_model(tmp_path / "model", dtype="bfloat16")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(
        tmp_path,
        tmp_path / "model",
        precision={"params": "bf16"},
        lora={"rank": 4, "alpha": 8, "targets": ["linear_qkv", "linear_fc2"]},
        optimizer={"lr": 1e-2},
        parallel={"tensor": 2},
        train={"steps": None, "epochs": 1.5},
        checkpoint={"export_hf": True},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    done = _command("megatron_dpop", "train", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "train.epochs 1.5: 3 steps" in done.stderr  # 18 of 12 pairs, 6 a step
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["steps"] == 3
    assert "LoRA: 5,632 parameters are trained" in done.stderr  # 4 layers, rank 4: 4 * 4 * (64 + 128 + 96 + 64)
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["reference/drift"] == 0.0
    assert lines[2]["loss"] != lines[0]["loss"]

    adapted = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32)
    merged = adapted.merge_and_unload().state_dict()
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    exported = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.bfloat16).state_dict()
    assert exported.keys() == merged.keys() == original.keys()
    for name, value in exported.items():
        trained = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "down_proj.weight"))
        assert torch.equal(value.float(), original[name]) is not trained, name
        assert ((value.float() - merged[name]).abs() <= 2.0**-8 * (1 + 1e-4) * merged[name].abs()).all(), name

    again = _command("megatron_dpop", "train", tmp_path / "config.yaml")
    assert again.returncode == 0, again.stderr


def test_a_rank_that_fails_ends_the_run_with_one_line(tmp_path: Path) -> None:
    """A fault that shows only in the ranks: the reference cache is another model's."""
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(
        tmp_path, tmp_path / "model", parallel={"tensor": 2}, reference={"cache": str(tmp_path / "cache")}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert _command("megatron_dpop", "reference", tmp_path / "config.yaml").returncode == 0
    done = _command("megatron_dpop", "train", tmp_path / "config.yaml", "--model.path", tmp_path / "other")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "train.safetensors was made from other weights" in errors[0]
    assert "delete it" in errors[0]
