"""Fields that change nothing are accepted, at the values at which they change nothing; others are named."""

from pathlib import Path
from typing import Any

import pytest

from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from tests.dpop_base.architectures.test_published import PUBLISHED
from tests.dpop_base.architectures.test_read import LLAMA, QWEN1, folder

CHANGES_NOTHING: dict[str, dict[str, Any]] = {
    "llama": {
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"), 0.0),
        **dict.fromkeys(("is_decoder", "add_cross_attention", "tie_encoder_decoder", "use_mrope", "alibi"), False),
        **dict.fromkeys(("quantization", "quantization_config", "rope_scaling", "sliding_window", "of_the_future")),
        "max_sequence_length": 2048,
        "seq_length": 2048,
        "model_max_length": 2048,
        "internal_version": "7b-v2",
        "transformers.js_config": {"dtype": "q4"},
        "pruned_heads": {},
        "hidden_act": "swish",
        "use_sliding_window": False,
        "max_window_layers": 28,
        "attention_bias": False,
        "neftune_noise_alpha": 5,
        "residual_multiplier": 1.0,
        "rotary_pct": 1,
        "max_length": 20,
        "temperature": 0.7,
        "is_causal": True,
        "drop_tokens": False,
    },
    "mistral": {"attention_bias": False, "mlp_bias": False, "sliding_window": None, "use_sliding_window": False},
    "qwen2": {"use_mrope": False, "max_window_layers": 3, "sliding_window": 128, "attention_bias": True},
    "qwen3": {"use_qk_norm": True, "max_window_layers": 3, "sliding_window": 128, "use_sliding_window": False},
    "qwen": {"max_position_embeddings": 5, "use_dynamic_ntk": True, "attn_dropout_prob": 0.0},
}
CHANGES_SOMETHING: dict[str, dict[str, Any]] = {
    "llama": {
        "use_mrope": True,
        "pruned_heads": {"0": [1]},
        "attn_pdrop": 0.1,
        "sliding_window": 4096,
        "alibi": True,
        "residual_multiplier": 0.2,
        "is_causal": False,
        "add_cross_attention": True,
        "of_the_future": 0,
        "quantization": {"bits": 4},
        "per_layer_config": {"0": {"head_dim": 8}},
        "final_logit_softcapping": 30.0,
        "rotary_pct": 0.5,
        "is_encoder_decoder": True,
        "hidden_size": None,
        "num_attention_heads": True,
    },
    "mistral": {"use_sliding_window": False, "attention_bias": True},
    "qwen2": {"use_mrope": True, "num_key_value_heads": "2"},
    "qwen3": {"head_dim": None, "use_qk_norm": False},
    "qwen": {"scale_attn_weights": False, "seq_length": None},
}


def of_family(model_type: str) -> dict[str, Any]:
    if model_type == "qwen":
        return QWEN1
    return {name: value for name, value in LLAMA.items() if name != "architectures"} | {"model_type": model_type}


@pytest.mark.parametrize(
    ("model_type", "name"), [(t, name) for t, fields in CHANGES_NOTHING.items() for name in fields]
)
def test_fields_that_change_nothing_are_accepted(model_type: str, name: str, tmp_path: Path) -> None:
    config = of_family(model_type) | ({"sliding_window": None} if model_type == "mistral" else {})
    expected = read_architecture(folder(tmp_path, config))
    assert read_architecture(folder(tmp_path, config | {name: CHANGES_NOTHING[model_type][name]})) == expected


@pytest.mark.parametrize(
    ("model_type", "name"), [(t, name) for t, fields in CHANGES_SOMETHING.items() for name in fields]
)
def test_fields_that_would_change_something_are_named(model_type: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=name):
        read_architecture(folder(tmp_path, of_family(model_type) | {name: CHANGES_SOMETHING[model_type][name]}))


LIMITS: dict[str, Any] = {
    **dict.fromkeys(("capacity_factor", "moe_expert_capacity_factor", "moe_expert_rank_capacity_factor"), 1.25),
    **dict.fromkeys(("drop_tokens", "moe_pad_expert_input_to_capacity", "pad_to_capacity"), True),
    "token_drop_policy": "probs",
    "expert_capacity": 64,
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_experts_tokens_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    """Whichever the family: it is no field that is merely unknown."""
    with pytest.raises(UserError, match=f"{name} is .* would depend on the pairs beside it"):
        read_architecture(folder(tmp_path, PUBLISHED["Qwen/Qwen3-30B-A3B"]["config"] | {name: LIMITS[name]}))


def test_absent_and_null_are_what_they_are_to_transformers(tmp_path: Path) -> None:
    def read(**change: Any) -> Any:
        return read_architecture(folder(tmp_path, of_family("mistral") | change))

    assert (read().sliding_window, read().num_key_value_heads) == (4096, 8)
    assert (read(sliding_window=None).sliding_window, read(num_key_value_heads=None).num_key_value_heads) == (None, 32)
