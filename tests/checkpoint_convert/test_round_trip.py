"""There and back, bit for bit, and the same logits from either layout, for every family."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.verify import logits_of, verify
from dpop_base.architectures.families import FAMILIES as ARCHITECTURES
from tests.checkpoint_convert.models import CONFIGS, FAMILIES, save_small


def test_every_family_is_tried() -> None:
    tried = {config().model_type for config in CONFIGS.values()} | {"qwen"}
    assert tried == ARCHITECTURES.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_equals_the_original_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    small = save_small(family, tmp_path / "hf", dtype)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == small.tensors.keys()
    for name, tensor in small.tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name
    original, config = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "back"))
    assert config | original == config  # all of the original, beside transformers 4's names for what is new in 5
    ropes = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"}
    assert set(config) - set(original) <= {"torch_dtype", "num_experts"} | ropes
    rope = config.get("rope_parameters", {})
    for table, theta in (
        (rope.get("full_attention", rope), "rope_theta"),
        (rope.get("sliding_attention", {}), "rope_local_base_freq"),
    ):
        if "rope_theta" in table:
            assert config[theta] == table["rope_theta"]
        if "partial_rotary_factor" in table:
            assert config["partial_rotary_factor"] == table["partial_rotary_factor"]
    assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_both_layouts_equal_the_original_implementation(family: str, tmp_path: Path) -> None:
    small = save_small(family, tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    tokens = torch.randint(0, 101, (48,), generator=torch.Generator().manual_seed(1))
    expected = small.logits(tokens)
    assert expected.abs().max() > 1  # a model whose logits vanish would prove nothing
    for kind in ("hf", "megatron"):
        torch.testing.assert_close(logits_of(tmp_path / kind, tokens), expected, atol=1e-4, rtol=0)


def test_dtype_on_request(tmp_path: Path) -> None:
    small = save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", dtype="bf16", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", dtype="fp16", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in small.tensors.items():
        assert torch.equal(back[name], tensor.bfloat16().half()), name
    assert '"float16"' in (tmp_path / "back" / "config.json").read_text()
