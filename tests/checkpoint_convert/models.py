"""Small random models of every family, with no tensor left at a value that would hide its loss."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Ernie4_5Config,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from tests.checkpoint_convert.qwen1 import Qwen1
from tests.tiny import write_tokenizer


def _internlm3(**fields: Any) -> PreTrainedConfig:
    """The oldest transformers that is supported does not have it."""
    from transformers import InternLM3Config

    return InternLM3Config(**fields)


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,  # odd: padded by every layout
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
TOKENS_OF_OTHERS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 4, "pad_token_id": None}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
ROPE = {  # all shorter than what the tests compute
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.5,
        "mscale_all_dim": 0.75,
        "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
        "long_factor": [2.0] * 6,
    },
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama(**options: Any) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, **options})


CONFIGS = {
    "llama1": lambda: _llama(num_key_value_heads=4),
    "llama3": lambda: _llama(rope_parameters=LLAMA3_ROPE),
    "llama-attention-bias": lambda: _llama(num_key_value_heads=4, attention_bias=True),  # MoMo-72B, Smaug-72B
    "yi": lambda: _llama(rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0}),
    "smollm2": lambda: _llama(
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}
    ),
    "llama-head-dim": lambda: _llama(head_dim=24),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**SMALL, sliding_window=7, attn_implementation="eager"),
    "qwen1.5": lambda: Qwen2Config(**{**SMALL, "num_key_value_heads": 4}),
    "qwen2": lambda: Qwen2Config(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen2.5-tied": lambda: Qwen2Config(**{**SMALL, "tie_word_embeddings": True}),
    "qwen2-late-window": lambda: Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=2, attn_implementation="eager"
    ),
    "qwen2-yarn": lambda: Qwen2Config(**SMALL, rope_scaling=ROPE["yarn"]),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=32),
    "qwen3-yarn-mscale": lambda: Qwen3Config(**SMALL, head_dim=32, rope_scaling=ROPE["yarn-mscale"]),
    "llama-linear": lambda: _llama(rope_scaling=ROPE["linear"]),
    "qwen3-moe": lambda: Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=32, norm_topk_prob=True),
    "qwen3-moe-dense-between": lambda: Qwen3MoeConfig(**SMALL, **EXPERTS, mlp_only_layers=[0], decoder_sparse_step=2),
    "qwen2-moe": lambda: Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=56),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=6, num_experts_per_tok=2),
    "smollm3": lambda: SmolLM3Config(**SMALL, **TOKENS_OF_OTHERS, no_rope_layer_interval=2),
    "smollm3-window": lambda: SmolLM3Config(
        **SMALL,
        **TOKENS_OF_OTHERS,
        no_rope_layers=[1, 0, 0, 1],
        use_sliding_window=True,
        sliding_window=7,
        attn_implementation="eager",
    ),
    "glm4": lambda: Glm4Config(**SMALL, **TOKENS_OF_OTHERS, head_dim=16),
    "glm": lambda: GlmConfig(**SMALL, **TOKENS_OF_OTHERS, head_dim=24),
    "ernie4.5": lambda: Ernie4_5Config(**SMALL, head_dim=24),
    "internlm3": lambda: _internlm3(**SMALL, head_dim=16, rope_scaling=ROPE["dynamic"]),
    "seed-oss": lambda: SeedOssConfig(**SMALL, head_dim=32),
    "phi3": lambda: Phi3Config(**SMALL, **TOKENS_OF_OTHERS, sliding_window=9, attn_implementation="eager"),
    "phi4-mini": lambda: Phi3Config(
        **{**SMALL, **TOKENS_OF_OTHERS, "tie_word_embeddings": True},
        original_max_position_embeddings=128,
        partial_rotary_factor=0.75,
        rope_scaling=ROPE["longrope"],
    ),
    "granite": lambda: GraniteConfig(
        **SMALL, embedding_multiplier=12.0, logits_scaling=0.7, residual_multiplier=0.22, attention_multiplier=0.15
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **{**SMALL, "tie_word_embeddings": True},
        head_dim=24,
        query_pre_attn_scalar=20,
        sliding_window=9,
        sliding_window_pattern=2,
        rope_scaling=ROPE["linear"],
        attn_implementation="eager",
    ),
}
FAMILIES = [*CONFIGS, "qwen1"]
MIXTURES = ["qwen3-moe", "qwen3-moe-dense-between", "qwen2-moe", "mixtral"]


@dataclass
class Small:
    """A model saved at `folder`, and its own implementation's logits."""

    folder: Path
    tensors: dict[str, Tensor]

    def logits(self, tokens: Tensor) -> Tensor:
        """fp32 [tokens, vocab] of int64 [tokens]."""
        with torch.no_grad():
            if (self.folder / "qwen1").exists():
                return Qwen1.load(self.folder)(tokens)
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            return model(tokens[None]).logits[0]  # type: ignore[no-any-return]


def fill(tensors: dict[str, Tensor], seed: int = 0) -> None:
    """Weights of a size that keeps activations near one; norms around one; biases around zero; nothing zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise / tensor.shape[1] ** 0.5)
            else:
                tensor.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))


def save_small(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Small:
    folder.mkdir(parents=True)
    if family == "qwen1":
        return _save_qwen1(folder, dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family]())
    fill(dict(model.named_parameters()))
    model.to(dtype).save_pretrained(folder)
    return Small(folder, load_file(folder / "model.safetensors"))


def save_chat_models(families: Collection[str], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A small model of each, with a tokenizer and chat template, in `folder/FAMILY`; returns the folder."""
    for family in families:
        save_small(family, folder / family, dtype)
        write_tokenizer(folder / family)
    return folder


def _save_qwen1(folder: Path, dtype: torch.dtype) -> Small:
    config = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        "model_type": "qwen",
        "attn_dropout_prob": 0.0,
        "bf16": dtype is torch.bfloat16,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": dtype is torch.float32,
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "kv_channels": 16,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 256,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 101,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "qwen1").touch()
    model = Qwen1(config)
    tensors = dict(model.named_parameters())
    fill(tensors)
    tensors = {name: value.detach().to(dtype) for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Small(folder, tensors)


def config_of(folder: Path) -> AutoConfig:
    return AutoConfig.from_pretrained(folder)
