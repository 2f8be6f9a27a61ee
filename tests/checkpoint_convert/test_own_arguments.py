"""What a Megatron checkpoint says of itself: compared with config.json, turned into one, and never executed."""

import argparse
import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnBackend
from safetensors.torch import load_file

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.manifest import MANIFEST
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.tensors.common_state import read_common_state
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from checkpoint_convert.tensors.torch_dist_write import common_state
from checkpoint_convert.verify import verify
from checkpoint_convert.weights import check_weights
from dpop_base.architectures import read_architecture
from dpop_base.architectures.own_arguments import disagreements
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import CONFIGS, save_small

# As Megatron-LM keeps them, with what is no plain data.
FURTHER: dict[str, Any] = {
    "params_dtype": torch.bfloat16,
    "attention_backend": AttnBackend.flash,
    "exit_signal": signal.SIGTERM,
    "data_path": ["corpus"],
    "apply_layernorm_1p": False,
    "make_vocab_size_divisible_by": 128,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `hf` (Llama 3) and its Megatron checkpoint `megatron`."""
    folder = tmp_path_factory.mktemp("own_arguments")
    save_small("llama3", folder / "hf")
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    (folder / "megatron" / MANIFEST).unlink()  # as others save it: its files may change
    return folder


@pytest.fixture
def megatron(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted / "megatron", tmp_path / "megatron"))


def own(folder: Path) -> dict[str, Any]:
    source = TorchDistSource(folder / "release")
    try:
        return dict(read_common_state(source)["args"])
    finally:
        source.close()


@pytest.mark.parametrize("family", CONFIGS)
def test_what_we_write_agrees_with_every_family(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]().to_dict()))
    a = read_architecture(tmp_path)
    written: Any = common_state(a)["args"]
    assert disagreements(vars(written), a) == []


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("smollm3", {"no_rope_freq": 2}, None),  # Megatron-LM's other spelling of [0, 1, 0, 1]
        ("smollm3", {"no_rope_freq": 4}, "no_rope_freq 4 where config.json has layers without rotary [0, 1, 0, 1]"),
        ("smollm3", {"no_rope_freq": None}, "no_rope_freq None"),
        ("gemma3", {"window_attn_skip_freq": 2}, None),
        ("gemma3", {"window_attn_skip_freq": None}, "window_attn_skip_freq None"),
        ("gemma3", {"apply_layernorm_1p": False}, "apply_layernorm_1p False"),
        ("gemma3", {"activation_func": "torch.nn.functional.silu"}, "hidden_act gelu_tanh"),
        ("gemma3", {"rotary_seq_len_interpolation_factor": None}, "linear scaling 3.0"),
        ("glm4", {"rotary_interleaved": False}, "rotary_interleaved False"),
        ("glm4", {"rotary_percent": 1.0}, "partial_rotary_factor 0.5"),
        ("granite", {"softmax_scale": None}, "attention scale 0.15"),
        ("qwen2-yarn", {"position_embedding_type": "rope"}, "position embedding yarn"),
        ("qwen2-yarn", {"rotary_scaling_factor": 8.0}, "yarn's factor 4.0"),
        ("llama3", {"no_rope_freq": [0, 0, 0, 0]}, None),
        ("llama3", {"rotary_interleaved": True}, "rotary_interleaved True"),
    ],
)
def test_what_a_family_adds_is_compared(family: str, change: dict[str, Any], named: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]().to_dict()))
    a = read_architecture(tmp_path)
    written: Any = common_state(a)["args"]
    found = disagreements({**vars(written), **change}, a)
    assert (named in "; ".join(found)) if named else not found


def save_arguments(folder: Path, **changes: Any) -> None:
    arguments = argparse.Namespace(**{**own(folder), **FURTHER, **changes})
    torch.save({"args": arguments, "iteration": 5}, folder / "release" / "common.pt")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"apply_layernorm_1p": True}, "apply_layernorm_1p True"),
        ({"rotary_base": 10000}, "rotary_base 10000 where config.json has rope_theta 500000.0"),
        ({"rotary_percent": 0.5}, "rotary_percent 0.5"),
        ({"use_rope_scaling": False}, "use_rope_scaling False where config.json has rope scaling llama3, factor 8"),
        ({"rope_scaling_factor": 32.0}, "factor 32"),
        ({"position_embedding_type": "none"}, "position_embedding_type none"),
        ({"no_rope_freq": 4}, "no_rope_freq 4"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon 1e-06"),
        ({"normalization": "LayerNorm"}, "normalization LayerNorm"),
        ({"vocab_size": 104}, "vocab_size 104 where config.json has vocab_size 101"),
        ({"add_bias_linear": True}, "add_bias_linear True"),
        ({"add_qkv_bias": True}, "add_qkv_bias True"),
        ({"qk_layernorm": True}, "qk_layernorm True"),
        ({"window_size": (63, 0)}, "window_size (63, 0)"),
        ({"swiglu": False}, "swiglu False"),
        ({"untie_embeddings_and_output_weights": False}, "untie_embeddings_and_output_weights False"),
        ({"kv_channels": 32}, "kv_channels 32 where config.json has head_dim 16"),
        ({"group_query_attention": False}, "num_query_groups"),
        ({"num_experts": 8}, "num_experts 8"),
        ({"softmax_scale": 0.1}, "softmax_scale 0.1"),
    ],
)
def test_every_disagreement_names_both_sides(change: dict[str, Any], named: str, converted: Path) -> None:
    a = read_architecture(converted / "hf")
    arguments = own(converted / "megatron")
    assert disagreements({**arguments, **FURTHER}, a) == []
    found = disagreements({**arguments, **change}, a)
    assert len(found) == 1
    assert named in found[0]


def test_wherever_a_checkpoint_is_read_it_must_agree(
    megatron: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_arguments(megatron)
    check_weights(megatron)
    save_arguments(megatron, rotary_base=10000)
    assert run(["megatron-to-hf", str(megatron), str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "rotary_base 10000 where config.json has rope_theta 500000.0" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="rotary_base"):
        verify(converted / "hf", megatron, progress=False)
    with pytest.raises(UserError, match="rotary_base"):
        check_weights(megatron)  # as training and analysis do before anything else


@pytest.mark.parametrize(
    "limit",
    [
        {"moe_expert_capacity_factor": 1.0},
        {"moe_pad_expert_input_to_capacity": True},
        {"moe_expert_rank_capacity_factor": 2.0},
    ],
)
def test_a_limit_of_experts_tokens_is_refused(
    limit: dict[str, Any], megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never = {"moe_token_drop_policy": "probs", "moe_expert_capacity_factor": None}  # as Megatron saves them
    save_arguments(megatron, **never)
    check_weights(megatron)
    save_arguments(megatron, **(never | limit))
    assert run(["megatron-to-hf", str(megatron), str(tmp_path / "out"), "--quiet"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert " ".join(map(str, *limit.items())) in line
    assert "would depend on the pairs beside it" in line


@pytest.mark.parametrize("file", ["run_config.yaml", "context/model.yaml"])
def test_what_megatron_bridge_and_nemo_save_is_compared(file: str, megatron: Path, tmp_path: Path) -> None:
    section = "model" if file == "run_config.yaml" else "config"
    text = f"_target_: some.Class\n{section}:\n  _target_: some.Provider\n  layernorm_zero_centered_gamma: true\n"
    text += (
        "  activation_func: {_target_: torch.nn.functional.silu, _call_: false}\n  window_size: !!python/tuple [6, 0]\n"
    )
    path = megatron / ("release" if section == "model" else "") / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "  other: !!python/object/apply:os.system ['touch executed']\n")
    with pytest.raises(UserError) as raised:
        megatron_to_hf(megatron, tmp_path / "out", progress=False)
    assert "layernorm_zero_centered_gamma True" in str(raised.value)
    assert "window_size [6, 0]" in str(raised.value)
    assert "activation_func" not in str(raised.value)
    assert not Path("executed").exists()


class Executed:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_nothing_of_a_common_state_is_executed(megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_arguments(megatron, hook=Executed())
    pickle.loads(pickle.dumps(Executed()))
    assert (tmp_path / "executed").exists()  # so it would do
    (tmp_path / "executed").unlink()
    megatron_to_hf(megatron, tmp_path / "out", progress=False)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "family",
    [
        *("llama3", "llama-attention-bias", "mistral-window", "qwen2", "qwen2.5-tied", "qwen3"),
        *("qwen3-moe", "qwen3-moe-dense-between", "qwen2-moe", "mixtral"),
    ],
)
def test_config_json_from_arguments_alone(family: str, tmp_path: Path) -> None:
    small = save_small(family, tmp_path / "hf", torch.bfloat16)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    shutil.rmtree(tmp_path / "megatron" / "huggingface")
    model_type = json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"]
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", from_args=model_type, progress=False)
    assert read_architecture(tmp_path / "out") == read_architecture(tmp_path / "hf")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == small.tensors.keys()
    assert all(torch.equal(exported[name], small.tensors[name]) for name in exported)


def test_a_family_that_cannot_express_the_arguments_is_refused(megatron: Path, tmp_path: Path) -> None:
    save_arguments(megatron, apply_layernorm_1p=True)
    with pytest.raises(UserError, match="apply_layernorm_1p"):
        megatron_to_hf(megatron, tmp_path / "out", from_args="llama", progress=False)
    with pytest.raises(UserError, match="no family"):
        megatron_to_hf(megatron, tmp_path / "out", from_args="gpt2", progress=False)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 128 vocabulary rows, none of them zero, whose config.json has 101."""
    folder = tmp_path_factory.mktemp("padded")
    save_small("qwen3", folder / "hf")
    config = json.loads((folder / "hf" / "config.json").read_text())
    tensors = load_file(folder / "hf" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(27, 64)])
    from safetensors.torch import save_file

    save_file(tensors, folder / "hf" / "model.safetensors")
    (folder / "hf" / "config.json").write_text(json.dumps({**config, "vocab_size": 128}))
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    (folder / "megatron" / MANIFEST).unlink()
    (folder / "megatron" / "huggingface" / "config.json").write_text(json.dumps(config))
    (folder / "megatron" / "release" / "common.pt").unlink()
    return folder / "megatron"


def test_padding_that_is_not_zero_is_left_out_with_a_word(
    padded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["megatron-to-hf", str(padded), str(tmp_path / "out"), "--quiet"]) == 0
    assert "27 vocabulary rows beyond config.json's vocab_size of 101" in capsys.readouterr().err
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape == (101, 64)


def test_rows_that_are_no_padding_of_megatron_are_refused(padded: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(padded, tmp_path / "megatron"))
    path = changed / "huggingface" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 0x7F << 8}))
    with pytest.raises(UserError, match="has other shapes"):  # fewer rows than config.json says
        megatron_to_hf(changed, tmp_path / "out", progress=False)
    torch.save({"args": argparse.Namespace(vocab_size=128)}, changed / "release" / "common.pt")
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 101}))
    with pytest.raises(UserError, match=r"vocab_size 128 where config\.json has vocab_size 101"):
        megatron_to_hf(changed, tmp_path / "out", progress=False)
    torch.save({"args": argparse.Namespace(vocab_size=101)}, changed / "release" / "common.pt")
    megatron_to_hf(changed, tmp_path / "out", progress=False)  # known to be padding
