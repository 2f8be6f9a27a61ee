"""SentencePiece models trained here. (Qwen's and SmolLM2's own tokenizers: see `tests/conftest.py`.)"""

import json
import shutil
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parent / "templates"


def train_sentencepiece(folder: Path, **pieces: object) -> Path:
    """A small SentencePiece model of Llama's kind: byte pairs, bytes for what is unknown, digits by themselves."""
    import sentencepiece

    words = (
        "the",
        "answer",
        "is",
        "yes",
        "no",
        "each",
        "of",
        "them",
        "costs",
        "sold",
        "apples",
        "pears",
        "how",
        "many",
        "have",
        "does",
        "so",
        "total",
    )
    lines = [f"{a} {b} {i} + {i * 3} = {i * 4}, {b}{a}." for i, a in enumerate(words) for b in words]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **pieces,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


@pytest.fixture(scope="session")
def sentencepiece_bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a SentencePiece model."""
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def yi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentencePiece as Yi uses it (no space before a text, its own special tokens), with Yi's ChatML template."""
    folder = tmp_path_factory.mktemp("yi")
    turns = ["<|im_start|>", "<|im_end|>"]
    names = {"bos_piece": "<|startoftext|>", "eos_piece": "<|endoftext|>", "control_symbols": turns}
    train_sentencepiece(folder, add_dummy_prefix=False, **names)
    shutil.copy(TEMPLATES / "yi.jinja", folder / "chat_template.jinja")
    added = {
        str(index): {"content": token, "special": True, "normalized": False}
        for index, token in enumerate(["<unk>", "<|startoftext|>", "<|endoftext|>", *turns])
    }
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llama(sentencepiece_bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as transformers' Llama tokenizer, with Llama-2's template."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(sentencepiece_bare / "tokenizer.model", folder)
    shutil.copy(TEMPLATES / "llama2.jinja", folder / "chat_template.jinja")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "legacy": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
