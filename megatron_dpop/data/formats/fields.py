"""A row's values by the role that they play, and checked ways to read them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..records import BadRowError

# What a column can be; `columns` in a config maps these to a file's own names.
ROLES = {
    "prompt": "what is answered: text, or messages",
    "input": "text that follows the prompt (Alpaca)",
    "chosen": "the better answer, or a whole conversation that ends with it",
    "rejected": "the worse one",
    "completion": "an answer, or a whole conversation that ends with it",
    "label": "whether the completion is good",
    "messages": "a whole conversation",
    "completions": "a list of answers",
    "scores": "of each of the completions, higher is better",
    "ranks": "of each of the completions, lower is better",
    "score": "of the completion, higher is better",
    "first": "the first of two answers",
    "second": "the second",
    "verdict": "which of the two is better",
    "system": "text of a system message",
    "history": "earlier turns",
    "tools": "that the assistant may call",
    "chat_template_kwargs": "arguments of the chat template",
}
BESIDE = ("system", "history", "tools", "chat_template_kwargs")  # roles that every format has


@dataclass(frozen=True)
class RowFields:
    """One row: `values` by role, and the columns that they came from, for messages."""

    values: Mapping[str, Any]
    columns: Mapping[str, str]

    def get(self, role: str) -> Any:
        return self.values.get(role)

    def name(self, role: str) -> str:
        return self.columns.get(role, role)

    def has(self, role: str) -> bool:
        """Whether there is such a column, and this row has anything in it."""
        return not is_empty(self.values.get(role))

    def need(self, role: str) -> Any:
        if role not in self.values:
            raise BadRowError(f"missing `{self.name(role)}`")
        return self.values[role]


@dataclass
class Notes:
    """What to know of a row beyond its records: what is not used of it, and what is left out of it without a fault."""

    plain: bool = False  # no chat template: transcripts stay the text that they are
    media: str = ""  # the file's column of images, videos or sounds
    unused: Counter[str] = field(default_factory=Counter)  # what -> rows
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> rows or completions
    last_reason: str = ""

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] += 1
        self.last_reason = reason


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict, tuple)) and not value)


def number_of(value: Any, name: str) -> float:
    """A finite number, also one written as text (CSV has nothing else)."""
    try:
        number = float("nan") if isinstance(value, (bool, list, dict)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or abs(number) == float("inf"):
        raise BadRowError(f"`{name}` is {str(value)[:40]!r}; a finite number is needed")
    return number


def is_missing_number(value: Any) -> bool:
    """Whether a rating was not given (null, NaN, or the words that raters' files have for it)."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "n/a", "na", "nan", "none", "null")
    return value is None or (isinstance(value, float) and value != value)


_LABELS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "desirable", "good", "chosen", "positive", "thumbs_up"), True),
    **dict.fromkeys(("false", "0", "0.0", "-1", "-1.0", "no", "undesirable", "bad", "rejected"), False),
    **dict.fromkeys(("negative", "thumbs_down"), False),
}


def label_of(value: Any, name: str) -> bool:
    """true or false, also as 1 or 0 (or -1), or in the words that published files have."""
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise BadRowError(f"`{name}` is {str(value)[:40]!r}; true or false is needed")
    return label
