"""Trains a tiny random model from Python, cell by cell: paste it into a notebook, or run it. It takes half a minute."""

# %% A model and pairs, made on the spot
import json
import random
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from megatron_dpop import train

folder = Path(tempfile.mkdtemp(prefix="tiny-"))
words = ["<pad>", "<unk>", "<end>", *(f"w{number}" for number in range(90))]
backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")
tokenizer.save_pretrained(folder / "model")
shape = {"vocab_size": len(words), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
set_seed(0)
LlamaForCausalLM(LlamaConfig(**shape, **heads, eos_token_id=2)).save_pretrained(folder / "model")

draw = random.Random(0)
pairs = []
for _ in range(64):
    prompt, chosen = ([f"w{draw.randrange(90)}" for _ in range(length)] for length in (6, 8))
    wrong = draw.randrange(8)
    rejected = [f"w{draw.randrange(90)}" if at == wrong else word for at, word in enumerate(chosen)]
    if rejected != chosen:
        pairs.append({"prompt": " ".join(prompt), "chosen": " ".join(chosen), "rejected": " ".join(rejected)})
(folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")

# %% Train it
config = {
    "model": {"path": str(folder / "model")},
    "precision": {"params": "fp32"},
    "data": {"train": str(folder / "pairs.jsonl"), "chat_template": "none", "max_tokens": 64, "row_tokens": 256},
    "loss": {"name": "dpop", "beta": 0.3, "lambda": 5.0},
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 0},
    "train": {"steps": 8, "global_batch_pairs": 16},
    "run": {"dir": str(folder / "run")},
}
run = train(config)

# %% Look at what it did
for line in run.metrics():
    print(f"step {line['step']}: loss {line['loss']:.4f}, accuracy {line['rewards/accuracies']:.2f}")
model = LlamaForCausalLM.from_pretrained(run.model)
print(f"{run.model} holds {sum(weight.numel() for weight in model.parameters()):,} parameters")
