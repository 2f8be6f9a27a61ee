"""Good inputs, as small as they can be: a model of two layers, a tokenizer of words, pairs, a run."""

import json
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "tie_word_embeddings": False, "rope_theta": 10000.0, "hidden_act": "silu",
    "torch_dtype": "float32", "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s> {% endfor %}"
PAIRS = [
    {"prompt": f"w{at} w{at + 1}", "chosen": f"w{at + 2} w1", "rejected": f"w{at + 2} w2 w{at + 3}"} for at in range(6)
]


def write_model(folder: Path) -> None:
    """A Hugging Face folder, in safetensors."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    torch.manual_seed(0)
    save_file({name: torch.randn(shape) for name, shape in _shapes().items()}, folder / "model.safetensors")
    write_tokenizer(folder)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16)}
    shapes["model.norm.weight"] = (16,)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (("q", 16, 16), ("k", 8, 16), ("v", 8, 16), ("o", 16, 16)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, columns)
        for name, rows, columns in (("gate", 32, 16), ("up", 32, 16), ("down", 16, 32)):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = (rows, columns)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (16,)
    return shapes


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "<user>", "<assistant>", *(f"w{at}" for at in range(20))]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def write_pairs(path: Path) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))


def config(folder: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(folder / "model")},
        "precision": {"params": "fp32"},
        "data": {"train": [{"path": str(folder / "pairs.jsonl"), "weight": 1.0}], "max_tokens": 32, "row_tokens": 64},
        "loss": {"name": "dpop", "beta": 0.3, "lambda": 5.0},
        "optimizer": {"lr": 1e-4, "warmup_steps": 0, "betas": [0.9, 0.99]},
        "train": {"steps": 3, "global_batch_pairs": 2},
        "checkpoint": {"export_hf": False},
        "logging": {"tensorboard": False, "stop_on": ["reference_drift"]},
        "run": {"dir": str(folder / "run")},
    }
