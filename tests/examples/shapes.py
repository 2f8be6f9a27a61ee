"""The true shapes of the recipes' models, and folders that are those models but for their weights, which are holes."""

import json
from pathlib import Path
from typing import Any

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from dpop_base.architectures import read_architecture
from examples.recipes.tiny import make_tokenizer

# hidden, layers, heads, key/value heads, FFN, vocabulary, rope theta
SIZES: dict[str, tuple[str, tuple[int, int, int, int, int, int, float], dict[str, Any]]] = {
    "Llama-2-7b-chat-hf": ("llama", (4096, 32, 32, 32, 11008, 32000, 1e4), {}),
    "Mistral-7B-v0.1": ("mistral", (4096, 32, 32, 8, 14336, 32000, 1e4), {"sliding_window": 4096}),
    "bagel-34b-v0.2": ("llama", (7168, 60, 56, 8, 20480, 64000, 5e6), {}),
    "MoMo-72B-lora-1.8.7-DPO": ("llama", (8192, 80, 64, 64, 24576, 152064, 1e6), {"attention_bias": True}),
    "Qwen2.5-72B-Instruct": ("qwen2", (8192, 80, 64, 8, 29568, 152064, 1e6), {}),
    "Qwen3-32B": ("qwen3", (5120, 64, 64, 8, 25600, 151936, 1e6), {"head_dim": 128}),
    "Llama-3.1-Tulu-3-8B-SFT": ("llama", (4096, 32, 32, 8, 14336, 128264, 5e5), {}),
    "Llama-3.1-Tulu-3-70B-SFT": ("llama", (8192, 80, 64, 8, 28672, 128264, 5e5), {}),
    "Llama-3.1-70B-SFT": ("llama", (8192, 80, 64, 8, 28672, 128256, 5e5), {}),
    "SmolLM3-3B-SFT": ("smollm3", (2048, 36, 16, 4, 11008, 128256, 5e6), {"tie_word_embeddings": True}),
    "Meta-Llama-3-70B-Instruct": ("llama", (8192, 80, 64, 8, 28672, 128256, 5e5), {}),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        (2048, 48, 32, 4, 6144, 151936, 1e6),
        {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        (4096, 94, 64, 4, 12288, 151936, 1e6),
        {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536},
    ),
    "Mixtral-8x7B-Instruct-v0.1": (
        "mixtral",
        (4096, 32, 32, 8, 14336, 32000, 1e6),
        {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
}
BF16_BYTES = 2


def write_hollow_model(folder: Path) -> None:
    """config.json, a tokenizer, and a weights file of the true length that takes no space: all that a check reads."""
    from transformers import AutoConfig

    model_type, (hidden, layers, heads, kv_heads, ffn, vocabulary, theta), others = SIZES[folder.name]
    config = AutoConfig.for_model(
        model_type,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **{"max_position_embeddings": 32768, "tie_word_embeddings": False, **others},
    )
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    architecture = read_architecture(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in from_megatron(RULES[architecture.family], architecture):
        begin, entries = end, 1
        for size in tensor.shape:
            entries *= size
        end = begin + entries * BF16_BYTES
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
