"""How a row of each source dataset becomes pairs: pure functions of (row, generator)."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import BadRowError, kind_of, text_of
from .corrupt import corrupt
from .pairs_file import Pair

SourceRow = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A row's pairs, why others were not made, and what is worth counting about those that were."""

    pairs: tuple[Pair, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


PairRule = Callable[[SourceRow, random.Random], Outcome]

UNLABELLED = "no label (test splits have none)"
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations, `<<2+3=5>>`, are not part of the answer's text


def metamath(row: SourceRow, generator: random.Random) -> Outcome:
    """query and response of MetaMathQA, or question and answer of GSM8K: one intermediate result made wrong."""
    prompt_name, answer_name = ("query", "response") if "query" in row else ("question", "answer")
    prompt = text_of(_column(row, prompt_name), prompt_name)
    answer = _CALCULATOR.sub("", text_of(_column(row, answer_name), answer_name))
    if not prompt.strip():
        return Outcome(skipped=("empty question",))
    corruption = corrupt(answer, generator, question=prompt)
    if isinstance(corruption, str):
        return Outcome(skipped=(corruption,))
    return Outcome((Pair(prompt, answer, corruption.text),), notes=(corruption.tier,))


def arc(row: SourceRow, _generator: random.Random) -> Outcome:
    """Each wrong choice against the right one, in the hub's columns or those of the original JSON Lines."""
    question = _column(row, "question")
    if isinstance(question, Mapping):  # AllenAI's own files: {"stem": ..., "choices": [{"text", "label"}]}
        stem = text_of(_column(question, "stem"), "question.stem")
        entries = _sequence(_column(question, "choices"), "question.choices")
        choices = [(_column(entry, "label"), _column(entry, "text")) for entry in entries]
    else:
        stem = text_of(question, "question")
        columns = _column(row, "choices")
        if not isinstance(columns, Mapping):
            raise BadRowError(f"`choices` is {kind_of(columns)}; an object with text and label is needed")
        labels, texts = (_sequence(_column(columns, name), f"choices.{name}") for name in ("label", "text"))
        if len(labels) != len(texts):
            raise BadRowError(f"`choices` has {len(texts)} texts and {len(labels)} labels")
        choices = list(zip(labels, texts, strict=True))
    key = _label(row, "answerKey")
    if key is None:
        return Outcome(skipped=(UNLABELLED,))
    right = [text_of(text, "choices.text") for label, text in choices if label == key]
    if len(right) != 1:
        return Outcome(skipped=("no choice has the answer's label",))
    return _against(stem, right[0], [text_of(text, "choices.text") for label, text in choices if label != key])


def hellaswag(row: SourceRow, _generator: random.Random) -> Outcome:
    """Each wrong ending against the right one; the context led by its activity, WikiHow's marks removed."""
    endings = [_clean(text_of(text, "endings")) for text in _sequence(_column(row, "endings"), "endings")]
    context = text_of(_column(row, "ctx"), "ctx")
    label = _label(row, "label")
    if label is None:
        return Outcome(skipped=(UNLABELLED,))
    if not label.isdigit() or int(label) >= len(endings):
        raise BadRowError(f"`label` is {label[:20]!r}; the number of one of {len(endings)} endings is needed")
    activity = row.get("activity_label")
    prompt = _clean(f"{activity}: {context}" if activity else context)
    right = int(label)
    return _against(prompt, endings[right], [text for index, text in enumerate(endings) if index != right])


def _label(row: SourceRow, name: str) -> str | None:
    """None where the row has no label: test splits leave it out, or write nothing, null or -1 for it."""
    value = row.get(name)
    text = "" if value is None else str(value).strip()
    return None if text in ("", "-1") else text


def _against(prompt: str, right: str, wrong: Sequence[str]) -> Outcome:
    if not prompt.strip() or not right.strip():
        return Outcome(skipped=("empty question or answer",))
    pairs, skipped = [], []
    for text in wrong:
        if not text.strip():
            skipped.append("empty wrong choice")
        elif text == right:
            skipped.append("wrong choice equal to the right one")
        else:
            pairs.append(Pair(prompt, right, text))
    return Outcome(tuple(pairs), tuple(skipped))


def _clean(text: str) -> str:
    """WikiHow texts carry [header], [title] and [step] marks; a title ends a sentence."""
    text = re.sub(r"\s*\[title\]", ". ", text)
    return re.sub(r"\s+", " ", re.sub(r"\[[a-z_]+\]", "", text)).replace(" .", ".").replace("..", ".").strip()


def _column(row: Any, name: str) -> Any:
    if not isinstance(row, Mapping):
        raise BadRowError(f"{kind_of(row)} where an object with `{name}` is needed")
    if name not in row:
        raise BadRowError(f"missing `{name}`; found {', '.join(map(str, row))[:120]}")
    return row[name]


def _sequence(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRowError(f"`{name}` is {kind_of(value)}; a list is needed")
    return value


RULES: dict[str, PairRule] = {"metamath": metamath, "arc": arc, "hellaswag": hellaswag}
