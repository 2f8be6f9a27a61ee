"""Two answers of one prompt and a column that says which is better."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..records import BadRowError, Record
from .fields import Notes, RowFields, is_missing_number, number_of
from .pairs import compare
from .turns import said

TIE = "a tie: neither answer is preferred"
UNJUDGED = "no verdict on the two answers"


@dataclass(frozen=True)
class Judged:
    """Names of one publisher's columns. `better` gives 0 for the first answer, 1 for the second, None for a tie."""

    prompts: tuple[str, ...]
    first: str
    second: str
    verdicts: tuple[str, ...]
    better: Callable[[Any, str], int | None]


def judged(how: Judged) -> Callable[[RowFields, Notes], list[Record]]:
    def records(fields: RowFields, notes: Notes) -> list[Record]:
        verdict, name = fields.need("verdict"), fields.name("verdict")
        if is_missing_number(verdict):
            notes.leave_out(UNJUDGED)
            return []
        better = how.better(verdict, name) if name in how.verdicts else _told(str(verdict), fields)
        if better is None:
            notes.leave_out(TIE)
            return []
        roles = ("first", "second")
        order = (roles[better], roles[1 - better])
        sides = [said(fields.need(role), fields.name(role)) for role in order]
        return compare(fields, notes, sides, tuple(fields.name(role) for role in order))

    return records


def _by_sign(value: Any, name: str) -> int | None:
    """HelpSteer: below 0 the first answer is better, above 0 the second."""
    number = number_of(value, name)
    return None if number == 0 else int(number > 0)


def _one_or_two(value: Any, name: str) -> int | None:
    """AlpacaFarm: 1 or 2."""
    return _index(value, name, {1.0: 0, 2.0: 1})


def _zero_or_one(value: Any, name: str) -> int | None:
    """SafeRLHF: the better answer's number."""
    return _index(value, name, {0.0: 0, 1.0: 1})


def _first_if_one(value: Any, name: str) -> int | None:
    """Stanford Human Preferences: 1 where A is preferred."""
    return _index(value, name, {1.0: 0, 0.0: 1})


def _index(value: Any, name: str, of: dict[float, int]) -> int:
    number = number_of(value, name)
    if number not in of:
        raise BadRowError(f"`{name}` is {str(value)[:40]!r}; it is one of {', '.join(f'{key:g}' for key in of)}")
    return of[number]


def _winner(value: Any, name: str) -> int | None:
    """Chatbot Arena: model_a, model_b, or a tie; others write A or response_b."""
    word = str(value).strip().lower()
    if word.startswith("tie") or word in ("both", "both_bad", "bothbad"):
        return None
    side = re.fullmatch(r"(?:(?:model|assistant|response|answer|completion|output)[ _])?([ab])", word)
    if side is None:
        raise BadRowError(f"`{name}` is {word[:40]!r}; it is a, b, model_a, model_b, the better column's name or a tie")
    return ord(side[1]) - ord("a")


_TOLD = {
    **dict.fromkeys(("1", "1.0", "a", "first", "left"), 0),
    **dict.fromkeys(("2", "2.0", "b", "second", "right"), 1),
    **dict.fromkeys(("tie", "both", "neither", "equal", "same", "draw"), None),
}


def _told(verdict: str, fields: RowFields) -> int | None:
    """A column that only the reader's own `columns` calls a verdict: its values must speak for themselves.

    A word of one answer's column is that answer (`bot` of `Reply (bot)`); else an answer's place, or a tie.
    """
    word, names = verdict.strip().lower(), (fields.name("first"), fields.name("second"))
    called = [side for side, name in enumerate(names) if word == name.lower() or word in _words(name)]
    if len(called) == 1:
        return called[0]
    if word not in _TOLD:
        raise BadRowError(
            f"`{fields.name('verdict')}` is {verdict[:40]!r}; write which answer is better: 1 or 2, first or second, "
            f"a word of its column's name ({' or '.join(f'`{name}`' for name in names)}), or tie"
        )
    return _TOLD[word]


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", name.lower())


PROMPTS = ("prompt", "context", "question", "instruction")
LETTERED = ("response", "answer", "completion", "output")  # of `response_a` and `response_b`
CHOICES = ("winner", "preference", "preferred", "better", "chosen")
JUDGED = (
    Judged(PROMPTS, "response1", "response2", ("overall_preference",), _by_sign),
    Judged(PROMPTS, "response_1", "response_2", ("preference_strength",), _by_sign),
    Judged(PROMPTS, "output_1", "output_2", ("preference",), _one_or_two),
    Judged(PROMPTS, "response_0", "response_1", ("better_response_id", "safer_response_id"), _zero_or_one),
    Judged(("history",), "human_ref_A", "human_ref_B", ("labels",), _first_if_one),
    Judged((), "conversation_a", "conversation_b", ("winner",), _winner),
    *(Judged(PROMPTS, f"{answer}_a", f"{answer}_b", CHOICES, _winner) for answer in LETTERED),
)
