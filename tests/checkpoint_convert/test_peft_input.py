"""PEFT folders as input: merged into their base as PEFT merges them, or refused by name."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.peft_folder import ADAPTER_WEIGHTS, match_adapter
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.verify import open_checkpoint
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import fill, save_small

ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft") / "base"
    save_small("qwen2", folder)
    return folder


def save_adapter(base: Path, folder: Path, **options: Any) -> dict[str, Tensor]:
    """Saves a random adapter as PEFT does, and returns the model that PEFT merges it into."""
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 10, "target_modules": ALL, **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    fill({name: value for name, value in model.named_parameters() if value.requires_grad}, seed=5)
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return dict(loaded.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ATTENTION, "use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 8},
            "alpha_pattern": {"^model.layers.2.mlp.up_proj": 3},
        },
        {"use_dora": True, "layers_to_transform": [1, 3]},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]},
        {"bias": "all"},
        {"target_modules": "all-linear"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_merged_as_peft_merges(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    expected = save_adapter(base, tmp_path / "adapter", **options)
    assert run(["hf-to-megatron", str(tmp_path / "adapter"), str(tmp_path / "megatron"), "--quiet"]) == 0
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", progress=False)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    original = load_file(base / "model.safetensors")
    assert merged.keys() == original.keys()
    changed = 0
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
        changed += not torch.equal(tensor, original[name])
    assert changed >= 8


def test_a_megatron_base_another_dtype_and_the_adapters_tokenizer(base: Path, tmp_path: Path) -> None:
    expected = save_adapter(base, tmp_path / "adapter")
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / "adapter" / name).write_text('"of the adapter"')
    hf_to_megatron(base, tmp_path / "base", progress=False)
    arguments = [str(tmp_path / "adapter"), str(tmp_path / "megatron"), "--base", str(tmp_path / "base")]
    assert run(["hf-to-megatron", *arguments, "--dtype", "bf16", "--quiet"]) == 0
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", progress=False)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].bfloat16()) or (tensor - expected[name]).abs().max() < 0.02
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == '"of the adapter"'
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"of_the_future": 1}, "of_the_future"),
        ({"rank_pattern": {"(a+)+b": 3}}, "rank_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 8}, "config and base say"),
        ({"r": None}, "config and base say"),
        ({"base_model_name_or_path": "org/name"}, "--base"),
    ],
)
def test_what_cannot_be_honoured_is_named(
    change: dict[str, Any], named: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert run(["hf-to-megatron", str(tmp_path / "adapter"), str(tmp_path / "megatron"), "--quiet"]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "megatron").exists()


def test_values_of_any_kind_are_used_or_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(base, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    weights, adapter = open_checkpoint(base), HuggingFaceSource(folder, names=ADAPTER_WEIGHTS)
    for name in config:
        for value in (None, True, 0, -1, 10**400, float("inf"), float("nan"), "", "\ud800", [], [None], {}, {"a": {}}):
            path.write_text(json.dumps(config | {name: value}))
            with contextlib.suppress(UserError):
                adapted, _ = match_adapter(folder, adapter, weights)
                assert all(math.isfinite(one.scale) for one in adapted.values())


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 101), "lora_embedding_A"),
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", (4, 64), "layers.9"),
        ("base_model.model.lm_head.weight", (104, 64), "resize"),
    ],
)
def test_tensors_without_a_place_are_named(
    name: str, shape: tuple[int, ...], named: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.ones(shape)}, path)
    assert run(["hf-to-megatron", str(tmp_path / "adapter"), str(tmp_path / "megatron"), "--quiet"]) == 2
    assert named in capsys.readouterr().err


def test_base_is_for_adapters_alone(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hf-to-megatron", str(base), str(tmp_path / "megatron"), "--base", str(base)]) == 2
    assert "leave --base out" in capsys.readouterr().err
