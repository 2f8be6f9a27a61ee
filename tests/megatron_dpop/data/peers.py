"""What TRL makes of rows: the token ids and the scored ones, by its own preparation and its own collator."""

import re
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PUBLISHED = Path(str(files("trl"))) / "chat_templates"  # of models, as TRL keeps them to recognise them
_MARKS = re.compile(
    r"<[|\uff5c][^<>\s'\"{}]*[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|</?think>|</?tool_call>"
)
_ORDINARY = re.compile("think|tool_call")  # tokens of their own that are not marked special


def byte_tokenizer(folder: Path, template: str) -> Path:
    """A tokenizer of bytes, with the marks that the template spells out as tokens of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<bos>", "<eos>", *sorted(set(_MARKS.findall(template)))]
    for mark in marks:
        backend.add_tokens([AddedToken(mark, special=not _ORDINARY.search(mark), normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = template
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    return folder


def trl_pairs(tokenizer: Any, rows: Sequence[dict[str, Any]], output: Path) -> list[dict[str, list[list[int]]]]:
    """For each row the unpadded ids of both sides, and those of them that are scored."""
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    config = DPOConfig(output_dir=str(output), use_cpu=True, bf16=False, report_to=[], max_length=None)
    prepare = DPOTrainer._prepare_dataset  # of the trainer it uses nothing but the tokenizer
    data = prepare(SimpleNamespace(_tokenizer=tokenizer), _streamed(rows), tokenizer, config, "train")
    return [_unpadded(DataCollatorForPreference(pad_token_id=0)([row])) for row in data]


def _streamed(rows: Sequence[dict[str, Any]]) -> Any:
    from datasets import IterableDataset

    def each() -> Any:
        yield from rows

    return IterableDataset.from_generator(each)


def _unpadded(batch: dict[str, Any]) -> dict[str, list[list[int]]]:
    kept, scored = batch["attention_mask"].bool(), batch["completion_mask"].bool()
    return {
        "ids": [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], kept, strict=True)],
        "scored": [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], scored, strict=True)],
    }
