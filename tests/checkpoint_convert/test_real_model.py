"""SmolLM2-135M, the real one: there and back bit for bit, and the same greedy continuations from either layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from tests.distributed import run_ranks

NEW_TOKENS = 12
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "2 + 2 =",
    "def fibonacci(n):",
    "Once upon a time, there was a",
    "The three primary colours are",
    "My favourite thing about the sea is",
    "To make a good cup of tea, you",
    "The opposite of hot is",
    "Natalia sold clips to 48 of her friends in April, and then",
]


def greedy(folder: Path) -> list[list[int]]:
    """Each prompt with the tokens that transformers, in fp32, finds most probable, one after the other."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    output = model.generate(**prompts, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    return [
        sequence[int((mask == 0).sum()) :].tolist()
        for sequence, mask in zip(output, prompts["attention_mask"], strict=True)
    ]


def most_probable_next(checkpoint: str, sequences: list[list[int]]) -> list[list[int]]:
    """For each token of each sequence, what Megatron-Core's model, in fp32, finds most probable to follow."""
    from megatron_dpop.config.schema import ParallelConfig
    from megatron_dpop.runtime import processes

    device = processes.initialize(ParallelConfig(), seed=0)
    from megatron_dpop.analysis.logits import megatron_logits

    logits = megatron_logits(Path(checkpoint), sequences, dtype=torch.float32, device=device)
    return [of_sequence.argmax(-1).tolist() for of_sequence in logits]


@pytest.mark.slow
def test_there_and_back_and_the_same_continuations(smollm2: Path, tmp_path: Path) -> None:
    hf_to_megatron(smollm2, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    original, back = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "back"))
    assert len(original) == 272
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        assert back[name].dtype == tensor.dtype == torch.bfloat16
        assert torch.equal(back[name], tensor), name

    continued = greedy(smollm2)
    assert greedy(tmp_path / "back") == continued
    # One pass over prompt and continuation is as good as generating: each token must be the most probable one after
    # those before it, which by induction is what Megatron would have continued with.
    [predicted] = run_ranks(most_probable_next, 1, str(tmp_path / "megatron"), continued)
    for prompt, sequence, following in zip(PROMPTS, continued, predicted, strict=True):
        assert following[-NEW_TOKENS - 1 : -1] == sequence[-NEW_TOKENS:], prompt
