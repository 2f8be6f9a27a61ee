"""The command line as a user meets it."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_convert.commands import run
from tests.checkpoint_convert.models import save_small
from tests.dpop_base.architectures.test_published import ACCEPTED, PUBLISHED
from tests.dpop_base.architectures.test_read import LLAMA, QWEN1

# Of each family the smallest.
OF_FAMILIES = {
    PUBLISHED[name]["config"]["model_type"]: name
    for name in sorted(ACCEPTED, key=lambda name: -PUBLISHED[name].get("parameters", 0))
}


@pytest.mark.parametrize("command", [[], ["hf-to-megatron"], ["megatron-to-hf"], ["verify"]])
def test_help_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*command, "--help"])
    assert ended.value.code == 0
    assert f"checkpoint-convert {' '.join(command)}".strip() in capsys.readouterr().out.split("example")[1]


def test_dry_run_of_72b_from_its_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN1))
    began = time.monotonic()
    assert run(["hf-to-megatron", str(tmp_path), "anywhere", "--dry-run"]) == 0
    assert time.monotonic() - began < 10
    out = capsys.readouterr().out
    assert "72,287,920,128 parameters" in out  # as published: 72B
    assert f"{72_287_920_128 * 2:,} bytes" in out
    assert not Path("anywhere").exists()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=pytest.mark.slow) if "30B-A3B" in model else model  # with 6,144 experts
        for _, model in sorted(OF_FAMILIES.items())
    ],
)
def test_dry_run_of_a_config_file_alone(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways, and as of a folder."""
    text = json.dumps(PUBLISHED[model]["config"])
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "any-name.json").write_text(text)
    for command in ("hf-to-megatron", "megatron-to-hf"):
        said = []
        for source in (tmp_path, tmp_path / "any-name.json"):
            assert run([command, str(source), "anywhere", "--dry-run", "--dtype", "bf16"]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        if parameters := PUBLISHED[model].get("parameters"):
            assert f"{parameters:,} parameters" in said[0]
            assert f"{parameters * 2:,} bytes, in" in said[0]


def test_dry_run_names_a_file_that_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.json").write_text("[]")
    for name, said in {"list.json": "holds list", "none.json": "no such folder or file"}.items():
        assert run(["hf-to-megatron", str(tmp_path / name), "anywhere", "--dry-run"]) == 2
        assert said in capsys.readouterr().err


def test_dry_run_names_what_is_unsupported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"mlp_bias": True}))
    assert run(["hf-to-megatron", str(tmp_path), "anywhere", "--dry-run"]) == 2
    assert "mlp_bias" in capsys.readouterr().err


def test_verify_names_the_worst_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small("qwen2", tmp_path / "hf")
    assert run(["hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--quiet"]) == 0
    assert run(["verify", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--logits", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "equal to the bit" in out
    assert "logits differ by at most" in out
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.layers.3.self_attn.v_proj.weight"][17, 5] += 0.5
    tensors["model.norm.weight"][3] += torch.tensor(0.25)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    assert run(["verify", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--quiet"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.layers.3.self_attn.v_proj.weight: 1 elements differ, most by 0.5 at [17, 5]"
    assert lines[1] == "model.norm.weight: 1 elements differ, most by 0.25 at [3]"


def test_verify_refuses_two_different_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small("qwen2", tmp_path / "one")
    save_small("qwen3", tmp_path / "two")
    assert run(["verify", str(tmp_path / "one"), str(tmp_path / "two"), "--quiet"]) == 2
    assert "compare one model" in capsys.readouterr().err


def test_the_wrong_direction_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small("qwen2", tmp_path / "hf")
    assert run(["megatron-to-hf", str(tmp_path / "hf"), str(tmp_path / "out")]) == 2
    assert "is a Hugging Face folder" in capsys.readouterr().err
    assert run(["hf-to-megatron", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_neither_converted_nor_copied_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As published folders have it: the first release's weights, other formats, and hidden files that nobody misses."""
    source = tmp_path / "hf"
    save_small("qwen2", source)
    convert = ["hf-to-megatron", str(source)]
    assert run([*convert, str(tmp_path / "whole"), "--quiet"]) == 0
    assert run([*convert, str(tmp_path / "plain")]) == 0
    assert "nor copied" not in capsys.readouterr().err

    for name in ("original", "onnx", ".cache", "additional_chat_templates"):
        (source / name).mkdir()
    for name in ("README.md", ".gitattributes", "training_args.bin", "pytorch_model.bin.index.json"):
        (source / name).write_text("{}")
    assert run([*convert, str(tmp_path / "named")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nor copied" in line]
    assert line == f"{source}: neither converted nor copied: onnx/, original/, training_args.bin"
    assert (tmp_path / "named" / "huggingface" / "README.md").is_file()
