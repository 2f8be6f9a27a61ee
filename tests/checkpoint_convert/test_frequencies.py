"""Rotary frequencies of every kind of scaling, read from a config, are those of transformers and of Megatron-Core."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from checkpoint_convert.frequencies import frequencies
from dpop_base.architectures import Architecture, read_architecture
from dpop_base.architectures.architecture import LinearScaling, RopeScaling, YarnScaling
from tests.checkpoint_convert.models import LLAMA3_ROPE, ROPE, SMALL
from tests.distributed import run_ranks

SHAPE = {**SMALL, "head_dim": 32, "rope_theta": 5e5}
TABLES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    **{name: table for name, table in ROPE.items() if name != "longrope"},
    "llama3": LLAMA3_ROPE,
    "yarn-factor": {**ROPE["yarn"], "attention_factor": 0.9},
    "yarn-short": {"rope_type": "yarn", "factor": 1.0},
}


def written(folder: Path, config: Any) -> Architecture:
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return read_architecture(folder)


@pytest.mark.parametrize("name", TABLES)
def test_as_in_transformers_to_the_bit(name: str, tmp_path: Path) -> None:
    config = LlamaConfig(**SHAPE, rope_scaling=dict(TABLES[name]))
    theirs = LlamaRotaryEmbedding(config)
    found, factor = frequencies(written(tmp_path, config))
    assert torch.equal(found, theirs.inv_freq)
    assert factor == theirs.attention_scaling


def test_longrope_within_its_original_length(tmp_path: Path) -> None:
    config = Phi3Config(
        **{**SMALL, "pad_token_id": 0},
        original_max_position_embeddings=64,
        partial_rotary_factor=0.75,
        rope_scaling=dict(ROPE["longrope"]),
    )
    a = written(tmp_path, config)
    theirs = Phi3RotaryEmbedding(config)
    found, factor = frequencies(a)
    assert torch.equal(found, theirs.inv_freq)
    assert factor == theirs.attention_scaling
    assert a.max_position_embeddings == 64  # beyond it every frequency of a sequence is another


def megatrons(a: Architecture) -> tuple[list[list[float]], float]:
    """Angles [64, rotary_dim / 2] of positions, and the factor of cosines and sines."""
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

    common: dict[str, Any] = {"kv_channels": a.head_dim, "rotary_percent": 1.0, "rotary_base": a.rope_theta}
    scaling = a.rope_scaling
    if isinstance(scaling, YarnScaling):
        yarn = YarnRotaryEmbedding(
            **common,
            scaling_factor=scaling.factor,
            original_max_position_embeddings=scaling.original_max_position_embeddings,
            beta_fast=scaling.beta_fast,
            beta_slow=scaling.beta_slow,
            mscale=None,
            mscale_all_dim=None,
            correction_range_round_to_int=scaling.truncate,
        )
        angles, factor = yarn.get_emb(64)
    else:
        factor = 1.0
        rope = RotaryEmbedding(
            **common, seq_len_interpolation_factor=scaling.factor if isinstance(scaling, LinearScaling) else None
        )
        if isinstance(scaling, RopeScaling):
            rope.inv_freq = rope._apply_scaling(
                rope.inv_freq,
                scaling.factor,
                scaling.low_freq_factor,
                scaling.high_freq_factor,
                scaling.original_max_position_embeddings,
            )
        angles = rope.get_emb(64)
    return angles[:, 0, 0, : a.head_dim // 2].tolist(), factor


def all_megatrons(architectures: list[Architecture]) -> list[tuple[list[list[float]], float]]:
    return [megatrons(a) for a in architectures]


def test_as_in_megatron_core(tmp_path: Path) -> None:
    names = ["default", "linear", "llama3", "yarn"]
    shapes = [written(tmp_path, LlamaConfig(**SHAPE, rope_scaling=dict(TABLES[name]))) for name in names]
    [found] = run_ranks(all_megatrons, 1, shapes)
    for a, (angles, factor) in zip(shapes, found, strict=True):
        ours, our_factor = frequencies(a)
        torch.testing.assert_close(torch.outer(torch.arange(64.0), ours), torch.tensor(angles), rtol=1e-6, atol=1e-6)
        assert our_factor == factor
