"""Mixtures of experts: both of transformers' forms, what Megatron stores, and what has no place in either."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.tensors.torch_dist import read_metadata
from checkpoint_convert.verify import verify
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import MIXTURES, SMALL, fill, save_small


def save_fused(folder: Path) -> Path:
    """The same model as transformers 5 holds it: two tensors for all of a layer's experts."""
    fused = folder.parent / "fused"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(fused, save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(fused / "model.safetensors"))
    return fused


@pytest.mark.parametrize("family", MIXTURES)
def test_fused_experts_are_read_as_single_ones(family: str, tmp_path: Path) -> None:
    small = save_small(family, tmp_path / "hf", torch.bfloat16)
    fused = save_fused(tmp_path / "hf")
    assert verify(tmp_path / "hf", fused, progress=False).equal
    hf_to_megatron(fused, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == small.tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.tensors.items())
    assert verify(fused, tmp_path / "megatron", progress=False).equal


def test_experts_are_stacked_as_megatron_stacks_them(tmp_path: Path) -> None:
    def sizes(family: str) -> dict[str, list[int]]:
        save_small(family, tmp_path / family / "hf")
        hf_to_megatron(tmp_path / family / "hf", tmp_path / family / "megatron", progress=False)
        entries = read_metadata(tmp_path / family / "megatron" / "release" / ".metadata").state_dict_metadata
        return {key: list(getattr(entry, "size", ())) for key, entry in entries.items()}

    alike = sizes("qwen3-moe")
    assert alike["decoder.layers.mlp.experts.experts.linear_fc1.weight"] == [4, 6, 80, 64]
    assert alike["decoder.layers.mlp.experts.experts.linear_fc2.weight"] == [4, 6, 64, 40]
    assert alike["decoder.layers.mlp.router.weight"] == [4, 6, 64]
    assert alike["decoder.layers.pre_mlp_layernorm.weight"] == [4, 64]
    assert "decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_3.5_4.6" in alike
    mixed = sizes("qwen3-moe-dense-between")  # layers 1 and 3 have experts
    assert mixed["decoder.layers.3.mlp.experts.experts.linear_fc1.weight"] == [6, 80, 64]
    assert mixed["decoder.layers.2.mlp.linear_fc1.weight"] == [192, 64]
    assert "decoder.layers.3.mlp.experts.experts.linear_fc2._extra_state/shard_5_6" in mixed
    assert not any(key.startswith("decoder.layers.mlp") for key in mixed)


def test_an_expert_too_few_is_named(tmp_path: Path) -> None:
    small = save_small("qwen3-moe", tmp_path / "hf")
    left = {n: t for n, t in small.tensors.items() if n != "model.layers.2.mlp.experts.5.up_proj.weight"}
    save_file(left, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks model\.layers\.2\.mlp\.experts\.5\.up_proj\.weight"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)


def test_fused_experts_of_another_shape_are_named(tmp_path: Path) -> None:
    save_small("qwen3-moe", tmp_path / "hf")
    fused = save_fused(tmp_path / "hf")
    tensors = load_file(fused / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(6, 40, 64)  # transposed
    save_file(tensors, fused / "model.safetensors")
    with pytest.raises(UserError, match=r"holds model\.layers\.1\.mlp\.experts\.down_proj"):
        hf_to_megatron(fused, tmp_path / "megatron", progress=False)


def drawn_config(seed: int) -> PreTrainedConfig:
    """A mixture of a random shape: experts, what each token gets of them, a shared one, dense layers between."""
    draw = random.Random(seed)
    heads, kv_heads = draw.choice([(4, 2), (4, 4), (2, 1), (6, 3)])
    layers, experts = draw.randint(1, 5), draw.randint(2, 9)
    shape = {
        **SMALL,
        "hidden_size": heads * draw.choice([8, 16]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw.choice([24, 56]),
        "vocab_size": draw.randint(50, 300),
        "tie_word_embeddings": draw.random() < 0.3,
        "num_experts_per_tok": draw.randint(2, experts),
    }
    family = draw.choice(["mixtral", "qwen2_moe", "qwen3_moe"])
    if family == "mixtral":
        return MixtralConfig(**shape, num_local_experts=experts)
    shape |= {
        "num_experts": experts,
        "moe_intermediate_size": draw.choice([8, 20, 36]),
        "norm_topk_prob": draw.random() < 0.5,
        "decoder_sparse_step": draw.randint(1, 2) if layers > 1 else 1,
        "mlp_only_layers": [0] if layers > 2 and draw.random() < 0.5 else [],
    }
    if family == "qwen3_moe":
        return Qwen3MoeConfig(**shape, head_dim=draw.choice([8, 24]))
    return Qwen2MoeConfig(**shape, shared_expert_intermediate_size=draw.choice([12, 40]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_mixtures_of_any_shape_come_back_to_the_bit(seed: int, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(drawn_config(seed))
    fill(dict(model.named_parameters()), seed)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    small = load_file(tmp_path / "hf" / "model.safetensors")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == small.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.items())
    again = tmp_path / "again"
    hf_to_megatron(tmp_path / "back", again, progress=False)
    assert verify(tmp_path / "megatron", again, progress=False).equal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts_per_tok": 7}, "7 of 6 experts"),
        ({"num_experts_per_tok": 1}, "no gradient would reach the router"),
        ({"num_experts": 5}, "two names of one number"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"n_group": 2}, "n_group"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    save_small("qwen3-moe", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        read_architecture(tmp_path / "hf")
