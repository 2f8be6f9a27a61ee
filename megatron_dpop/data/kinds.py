"""Records as the loss needs them: pairs, single labels, groups or demonstrations."""

from dataclasses import replace
from typing import Literal

from dpop_base.choices import ExampleKind

from .records import Completion, Record

RowKind = Literal["pair", "ranked", "single", "sft"]  # what a file's rows are by themselves

RULES = {
    "ranked": "the best completion against the worst",
    "single": "each completion by itself",
    "group": "all completions, the best-rated chosen",
    "sft": "the chosen completion alone",
}

# Losses for what cannot be made into every kind.
LOSSES: dict[RowKind, str] = {"single": "kto or sft", "sft": "sft"}


def kind_to_use(natural: RowKind, asked: ExampleKind | None) -> ExampleKind:
    """The kind that is asked for; without one rows are used as they are, and ranked completions as pairs."""
    return asked or ("pair" if natural == "ranked" else natural)


def can_be(natural: RowKind, kind: ExampleKind) -> bool:
    """Whether rows that are `natural` by themselves can be used as `kind`."""
    return {
        "pair": True,
        "ranked": True,
        "single": kind in ("single", "sft"),
        "sft": kind == "sft",
    }[natural]


def as_kind(record: Record, kind: ExampleKind) -> list[Record] | str:
    """The record in the form asked for, or why nothing is left of it."""
    if kind == "group":
        return [record] if False in record.preferred else "all completions are rated the same"
    if kind == "sft":
        best = [text for text, good in zip(record.completions, record.preferred, strict=True) if good]
        return [_only(record, best[0], True)] if best else "labelled as rejected"
    if record.scores is None and len(record.completions) == 1:
        return [record]
    pair = _best_and_worst(record)
    if isinstance(pair, str) or kind == "pair":
        return pair if isinstance(pair, str) else [pair]
    return [_only(pair, text, good) for text, good in zip(pair.completions, pair.preferred, strict=True)]


def rule_text(natural: RowKind, kind: ExampleKind) -> str:
    """The rule in words where rows are not used as they stand, else nothing."""
    if natural == "ranked" and kind in ("pair", "single"):
        return RULES["ranked"]
    return "" if natural in (kind, "ranked" if kind == "group" else kind) else RULES.get(kind, "")


def _best_and_worst(record: Record) -> Record | str:
    if record.scores is None:
        return record
    if len(record.scores) == 1:
        return "only one completion"
    best, worst = max(record.scores), min(record.scores)
    if best == worst:
        return "all completions are rated the same"
    chosen, rejected = (record.completions[record.scores.index(score)] for score in (best, worst))
    return replace(record, completions=(chosen, rejected), preferred=(True, False), scores=None)


def _only(record: Record, completion: Completion, preferred: bool) -> Record:
    return replace(record, completions=(completion,), preferred=(preferred,), scores=None)
