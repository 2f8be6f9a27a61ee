"""A tiny chat model with its tokenizer, and pairs for it, made on the spot."""

import json
import random
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
WORDS = 90


def write_model(folder: Path, *, seed: int = 0, dtype: str = "float32", **shape: object) -> Path:
    """A Llama-shaped model with weights large enough that every tensor matters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 101,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 4,
            "pad_token_id": 0,
            **shape,
        }
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.6, 1.4)
            else:
                parameter.normal_(0, 0.12)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Whole words, split at spaces; `<end>` ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(WORDS))]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def write_pairs(path: Path, count: int, *, seed: int = 0) -> Path:
    """Pairs of differing lengths whose answers agree at first, as corrupted answers do."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> list[str]:
        return [f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(least, most))]

    lines = []
    for _ in range(count):
        prompt, common = words(2, 12), words(0, 9)
        chosen, rejected = common + words(1, 8), common + words(1, 8)
        if chosen == rejected:
            rejected.append("w0")
        lines.append(
            json.dumps({"prompt": " ".join(prompt), "chosen": " ".join(chosen), "rejected": " ".join(rejected)})
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def model_and_pairs(folder: Path, pairs: int, **shape: object) -> Path:
    """Writes a model and this many pairs into the folder, and returns the folder."""
    write_model(folder / "model", **shape)
    write_pairs(folder / "pairs.jsonl", pairs)
    return folder


def write_config(folder: Path, model: Path, **sections: object) -> dict:
    """A config as a dict, over pairs in `folder`; sections are merged key by key."""
    tree: dict = {
        "model": {"path": str(model)},
        "precision": {"params": "fp32"},
        "data": {"train": str(folder / "pairs.jsonl"), "max_tokens": 64, "row_tokens": 128},
        "loss": {"name": "dpop", "beta": 0.3, "lambda": 5.0},
        "optimizer": {"lr": 1e-3, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01},
        "train": {"steps": 3, "global_batch_pairs": 6},
        "checkpoint": {"export_hf": False},
        "logging": {"tensorboard": False},
        "run": {"dir": str(folder / "run")},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}  # type: ignore[dict-item]
    return tree
