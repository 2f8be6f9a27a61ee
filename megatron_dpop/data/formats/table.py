"""The formats that are known: which columns each has, and what becomes of a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..kinds import RowKind
from ..records import Record
from . import pairs, ranked, single
from .fields import Notes, RowFields
from .transcripts import is_transcript
from .verdicts import JUDGED, judged

Values = Mapping[str, Sequence[Any]]  # role -> its values in the first rows, less the nulls


@dataclass(frozen=True)
class Format:
    name: str
    kind: RowKind
    slots: Mapping[str, tuple[str, ...]]  # role -> names of columns that can have it
    records: Callable[[RowFields, Notes], list[Record]]  # BadRowError where the row is wrong
    optional: tuple[str, ...] = ()  # roles of `slots` that need not be there
    fits: Callable[[Values], bool] = field(default=lambda values: True)
    grouped: bool = False  # rows of one prompt are gathered first


# What asks, beside an answer that stands by itself.
QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")
CONTEXTS = ("context", "context_messages", "prompt_messages")
_ASKS = {"prompt": (*QUESTIONS, *CONTEXTS, *CONVERSATIONS), "input": ("input", "context")}
_INSTRUCTS = {"prompt": QUESTIONS, "input": ("input", "context")}
# The better answer's column and the worse one's.
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),  # OpenAI
    ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),  # Stack Exchange
    ("response", "rejected_response"),  # ms-swift
    ("chosen_messages", "rejected_messages"),
)
ANSWERS = ("completion", "response", "output", "answer", "solution")
LABELS = ("label", "kto_tag")
LONGEST_VERDICT = 24  # characters


def _is_numbers(role: str) -> Callable[[Values], bool]:
    return lambda values: all(not isinstance(value, (list, dict)) for value in values[role])


def _are_texts(values: Values) -> bool:
    """A list of two texts, not of the parts of one message."""
    return any(
        isinstance(value, list) and len(value) > 1 and all(isinstance(entry, str) for entry in value)
        for value in values["completion"]
    )


def _are_rated(values: Values) -> bool:
    known = ranked.SCORE_IN_ENTRY + ranked.RANKS
    entries = (entry for value in values["completions"] if isinstance(value, list) for entry in value)
    return any(isinstance(entry, dict) and any(name in entry for name in known) for entry in entries)


def _are_lists(values: Values) -> bool:
    by = values.get("scores") or values.get("ranks") or ()
    return any(isinstance(value, list) for value in by)


def _is_judged(values: Values) -> bool:
    """A verdict is a number or a word or two; a column called `chosen` may be a whole answer."""
    return all(len(str(value)) <= LONGEST_VERDICT for value in values["verdict"])


def _holds_its_prompt(values: Values) -> bool:
    return any(isinstance(value, (list, dict)) or is_transcript(str(value)) for value in values["completion"])


def _pairs() -> list[Format]:
    found = []
    for chosen, rejected in PAIRS:
        sides = {"chosen": (chosen,), "rejected": (rejected,)}
        found.append(Format("pairs with a prompt", "pair", {**_ASKS, **sides}, pairs.pair, optional=("input",)))
    for chosen, rejected in PAIRS:
        if (chosen, rejected) != ("response", "rejected_response"):
            sides = {"chosen": (chosen,), "rejected": (rejected,)}
            found.append(Format("pairs that hold their prompt", "pair", sides, pairs.pair))
    return found


def _judged() -> list[Format]:
    return [
        Format(
            "two answers and a verdict",
            "pair",
            {
                **({"prompt": how.prompts, "input": ("input",)} if how.prompts else {}),
                "first": (how.first,),
                "second": (how.second,),
                "verdict": how.verdicts,
            },
            judged(how),
            optional=("input",),
            fits=_is_judged,
        )
        for how in JUDGED
    ]


_SWIFT = {"messages": CONVERSATIONS, "rejected": ("rejected_response", "rejected_messages")}
_MANY = {"completions": ranked.COMPLETIONS}
_RATED_ROWS = ("rating", "score", "reward", "overall_score", "helpfulness")
TABLE = (
    Format("conversations with a rejected answer", "pair", _SWIFT, pairs.conversation_with_rejected),
    *_pairs(),
    *_judged(),
    Format(
        "lists of two answers",
        "pair",
        {**_INSTRUCTS, "completion": ANSWERS},
        pairs.listed_answers,
        optional=("input",),
        fits=_are_texts,
    ),
    Format(
        "completions with single labels",
        "single",
        {**_ASKS, "completion": ANSWERS, "label": LABELS},
        single.labelled,
        optional=("input",),
    ),
    Format(
        "labelled conversations",
        "single",
        {"completion": ANSWERS, "label": LABELS},
        single.labelled,
        fits=_holds_its_prompt,
    ),
    Format("labelled conversations", "single", {"messages": CONVERSATIONS, "label": LABELS}, single.labelled),
    Format(
        "completions with scores",
        "ranked",
        {**_ASKS, **_MANY, "scores": ranked.SCORES},
        ranked.parallel_lists,
        optional=("input",),
        fits=_are_lists,
    ),
    Format(
        "completions with ranks",
        "ranked",
        {**_ASKS, **_MANY, "ranks": ranked.RANKS},
        ranked.parallel_lists,
        optional=("input",),
        fits=_are_lists,
    ),
    Format(
        "rated completions", "ranked", {**_ASKS, **_MANY}, ranked.rated_entries, optional=("input",), fits=_are_rated
    ),
    Format(
        "one rated completion a row",
        "ranked",
        {"prompt": ("prompt",), "completion": ("response", "completion", "answer"), "score": _RATED_ROWS},
        ranked.gathered_rows,
        fits=_is_numbers("score"),
        grouped=True,
    ),
    Format("chat messages", "sft", {"messages": ("messages",)}, single.every_answer),
    Format("conversations", "sft", {"messages": ("conversations",)}, single.every_answer),
    Format(
        "Orca-chat conversations",
        "sft",
        {"messages": ("conversation",), "system": ("system", "instruction")},
        single.every_answer,
        optional=("system",),
    ),
    Format(
        "prompts and completions",
        "sft",
        {**_INSTRUCTS, "completion": ANSWERS},
        single.demonstration,
        optional=("input",),
    ),
)
