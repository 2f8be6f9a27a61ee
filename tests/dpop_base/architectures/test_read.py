"""config.json in the spellings of transformers 4 and 5; what is not supported is named, never ignored."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from dpop_base.architectures import RopeScaling, read_architecture
from dpop_base.architectures.read import architecture_of, dtype_of, read_fields
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import CONFIGS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float16",
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 8}
QWEN1: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 8192,
    "intermediate_size": 49152,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "kv_channels": 128,
    "vocab_size": 152064,
    "seq_length": 32768,
    "max_position_embeddings": 32768,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 1000000,
    "no_bias": True,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
    "tie_word_embeddings": False,
    "bf16": True,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def folder(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


def test_llama2_without_later_fields(tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, LLAMA))
    assert (a.num_key_value_heads, a.head_dim, a.rope_theta) == (32, 128, 10_000.0)
    assert not (a.qkv_bias)
    assert not (a.attention_output_bias)
    assert not (a.tied_embeddings)
    assert not (a.qk_norm)
    assert dtype_of(read_fields(tmp_path)) == "fp16"


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **SCALING}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}},
    ],
)
def test_llama3_rope_in_every_spelling(spelling: dict[str, Any], tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, LLAMA | spelling))
    assert a.rope_theta == 5e5
    assert a.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_two_thetas_that_differ_are_refused(tmp_path: Path) -> None:
    """transformers 4 reads the one, transformers 5 the other."""
    (tmp_path / "config.json").write_text(
        json.dumps(LLAMA | {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})
    )
    with pytest.raises(UserError, match=r"rope_theta says 500000\.0, rope_parameters 10000\.0; remove the wrong one"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("family", "old", "tables"),
    [
        ("gemma3", {"rope_local_base_freq": 2e4}, {"sliding_attention": {"rope_theta": 1e4}}),
        ("phi3", {"partial_rotary_factor": 0.5}, {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    ],
)
def test_other_old_names_that_contradict_are_refused(family: str, old: dict, tables: dict, tmp_path: Path) -> None:
    (name,) = old
    CONFIGS[family]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | old | {"rope_parameters": tables}))
    with pytest.raises(UserError, match=rf"{name} says .*; remove the wrong one"):
        read_architecture(tmp_path)


def test_attention_bias_of_llama_is_on_all_four(tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, LLAMA | {"attention_bias": True}))
    assert a.qkv_bias
    assert a.attention_output_bias


def test_qwen2_bias_and_idle_window(tmp_path: Path) -> None:
    config = QWEN2 | {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}
    a = read_architecture(folder(tmp_path, config))
    assert a.qkv_bias
    assert not a.attention_output_bias
    assert a.sliding_window is None


def test_qwen1_72b(tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, QWEN1))
    assert (a.family, a.ffn_hidden_size, a.head_dim, a.rope_theta) == ("qwen", 24576, 128, 1e6)
    assert dtype_of(read_fields(tmp_path)) == "bf16"


def test_qwen1_beyond_its_training_length_is_out_of_reach(tmp_path: Path) -> None:
    config = QWEN1 | {"seq_length": 8192, "use_dynamic_ntk": True, "use_logn_attn": True}
    assert read_architecture(folder(tmp_path, config)).max_position_embeddings == 8192


def test_mistral_window_and_its_default_groups(tmp_path: Path) -> None:
    config = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096}
    a = read_architecture(folder(tmp_path, config))
    assert (a.sliding_window, a.num_key_value_heads) == (4096, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, "longrope"),
        ({"rope_scaling": {"rope_type": "ntk-by-parts", "factor": 2.0}}, "ntk-by-parts"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "extrapolation_factor": 2.0}}, "extrapolation_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 3.0}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"model_type": "gemma"}, "gemma"),
        ({"model_type": "gemma2"}, "caps attention scores"),
        ({"model_type": "glm4_moe"}, "of mixtures of experts only"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "key/value heads"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named) as raised:
        read_architecture(folder(tmp_path, LLAMA | change))
    assert "\n" not in str(raised.value)
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "for 32 layers"),
        ({"layer_types": ["full_attention"] * 31 + ["sliding_attention"]}, "no window slides"),
        ({"layer_types": ["full_attention"] * 31 + ["chunked_attention"]}, "chunked_attention"),
    ],
)
def test_windows_that_do_not_fit_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        read_architecture(folder(tmp_path, QWEN2 | change))


def test_windows_of_late_layers(tmp_path: Path) -> None:
    change = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 25}
    a = read_architecture(folder(tmp_path, QWEN2 | change))
    assert [a.window(layer) for layer in range(32)] == [None] * 25 + [4096] * 7


@pytest.mark.parametrize("change", [{"no_bias": False}, {"rotary_pct": 0.25}, {"intermediate_size": 11}])
def test_qwen1_variants_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        read_architecture(folder(tmp_path, QWEN1 | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"model_type": 3}'])
def test_broken_config(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        read_architecture(folder(tmp_path, text))


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_architecture(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_architecture(tmp_path)


def test_config_beside_a_megatron_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    folder(tmp_path / "huggingface", LLAMA)
    assert read_architecture(tmp_path).num_layers == 32


ODD = (
    *(None, True, -1, 0, 2, 10**400, 0.5, -0.0, float("inf"), float("nan"), "", "\0", "\ud800", "x" * 5000, "1e9"),
    *([], [1], [None], ["full_attention"], {}, {"a": {}}, {"rope_type": "yarn", "factor": 10**400}),
)


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN1], ids=["llama", "qwen2", "qwen1"])
def test_values_of_any_kind_are_used_or_refused(config: dict[str, Any], tmp_path: Path) -> None:
    others = ("dtype", "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "head_dim", "sliding_window")
    for name in {*config, *others, "use_sliding_window", "max_window_layers", "tie_word_embeddings", "bf16"}:
        for value in ODD:
            changed = folder(tmp_path, config | {name: value})
            for read in (architecture_of, dtype_of):
                with contextlib.suppress(UserError):
                    read(read_fields(changed))
