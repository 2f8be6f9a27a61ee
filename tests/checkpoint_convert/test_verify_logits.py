"""`verify --logits`: prompts that see what the config says, held against transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, MistralConfig

from checkpoint_convert.commands import run
from checkpoint_convert.logits import MOST_TOKENS, needed_length, prompt
from dpop_base.architectures import read_architecture
from dpop_base.architectures.families import FAMILIES
from dpop_base.architectures.family import Family
from tests.checkpoint_convert.models import fill, save_small
from tests.dpop_base.architectures.test_read import LLAMA, SCALING, folder

MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 32),
        ({"rope_scaling": {"rope_type": "llama3", **SCALING}, "max_position_embeddings": 131072}, 8192 + 32),
        ({**MISTRAL, "max_position_embeddings": 32768}, 4096 + 32),
        ({**MISTRAL, "sliding_window": 50, "max_position_embeddings": 60}, 60),
        ({**MISTRAL, "sliding_window": 10**6, "max_position_embeddings": 10**7}, 10**6 + 32),
    ],
)
def test_a_prompt_is_as_long_as_the_config_asks(change: dict[str, Any], expected: int, tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, LLAMA | change))
    assert needed_length(a) == expected
    assert len(prompt(a)) == min(expected, MOST_TOKENS)


@pytest.mark.parametrize("family", ["llama3", "mistral-window"])
def test_transformers_agrees(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small(family, tmp_path / "hf")
    assert run(["hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--quiet"]) == 0
    assert run(["verify", str(tmp_path / "megatron"), str(tmp_path / "hf"), "--logits", "--quiet"]) == 0
    said = capsys.readouterr().out
    expected = {"llama3": 64 + 32, "mistral-window": 7 + 32}[family]
    assert f"after {expected} tokens" in said
    assert "transformers' logits differ by at most" in said
    assert "too short" not in said
    assert run(["verify", str(tmp_path / "hf"), str(tmp_path / "hf"), "--logits", "--tokens", "8", "--quiet"]) == 0
    assert "too short to see" in capsys.readouterr().out


def test_a_window_that_a_config_leaves_to_its_class_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader that took an absent window for none would be found out: transformers' Mistral slides 4096."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(**shape, num_key_value_heads=1, vocab_size=101, max_position_embeddings=8192)
    model = AutoModelForCausalLM.from_config(config)
    fill(dict(model.named_parameters()))
    model.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    saved = json.loads(path.read_text())
    del saved["sliding_window"]
    path.write_text(json.dumps(saved))
    arguments = ["verify", str(tmp_path / "hf"), str(tmp_path / "hf"), "--logits", "--quiet"]
    assert run(arguments) == 0
    assert "after 4128 tokens" in capsys.readouterr().out
    mistral = FAMILIES["mistral"]
    naive = Family(**{**vars(mistral), "defaults": {**mistral.defaults, "sliding_window": None}})
    monkeypatch.setitem(FAMILIES, "mistral", naive)
    assert run([*arguments, "--tokens", "4200"]) == 1
    assert "IT COMPUTES OTHERWISE" in capsys.readouterr().out
