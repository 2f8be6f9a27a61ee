"""A random model of a few thousand weights and sums to train it on, in place of a recipe's model and data."""

import json
import random
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
EXAMPLES = 24


def write_model(folder: Path, options: dict[str, Any]) -> None:
    """A Hugging Face folder in bf16 of `options["model_type"]`; nothing where it exists."""
    if (folder / "tokenizer.json").exists():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0, **options}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> Any:
    """Bytes as tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_data(path: Path, *, demonstrations: bool) -> None:
    """Sums with a right and a wrong result, or only the right one; a file's name decides its sums."""
    draw = random.Random(path.name + path.parent.name)
    rows = []
    for _ in range(EXAMPLES):
        left, right = draw.randrange(2, 60), draw.randrange(2, 60)
        prompt, answer = f"How much is {left} + {right}?", f"{left} + {right} = {left + right}"
        wrong = f"{left} + {right} = {left + right + draw.randrange(1, 9)}"
        answers = {"completion": answer} if demonstrations else {"chosen": answer, "rejected": wrong}
        rows.append({"prompt": prompt, **answers})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
