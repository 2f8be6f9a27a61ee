"""A guess at what a file's columns are, from their names: to be offered, never to be taken."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .ranked import COMPLETIONS

# Of a word that a name contains; the first role that one of the name's words belongs to is taken.
_WORDS = {
    "rejected": (
        *("reject", "rejected", "worse", "worst", "bad", "loser", "lose", "losing", "negative", "neg", "wrong"),
        *("incorrect", "dispreferred", "nonpreferred", "disliked", "inferior", "unsafe", "lost", "reject_response"),
    ),
    "chosen": (
        *("chosen", "choose", "better", "best", "good", "winner", "win", "winning", "positive", "pos", "right"),
        *("correct", "preferred", "accepted", "accept", "liked", "superior", "safe", "select", "selected", "won"),
    ),
    "label": ("label", "tag", "thumbs", "feedback", "desirable"),
    "prompt": (
        *("prompt", "question", "instruction", "query", "input", "context", "problem", "user", "ask", "request"),
        *("dialogue", "dialog", "conversation", "source", "q", "text"),
    ),
    "completion": ("completion", "answer", "response", "output", "reply", "solution", "target", "generation", "a"),
}
_NEGATIONS = ("non", "not", "dis", "un", "less")


def guess(sample: Sequence[Mapping[str, Any]], present: Sequence[str]) -> dict[str, str]:
    """role -> column for a pair, two answers and a verdict, a labelled completion or a demonstration.

    {} where the names say too little.
    """
    found: dict[str, str] = {}
    for name in present:
        if any(isinstance(row.get(name), (str, list, dict, bool)) for row in sample):
            role = _role_of(name)
            if role and role not in found:
                found[role] = name
    if "chosen" in found and "rejected" in found:
        return {role: found[role] for role in ("prompt", "chosen", "rejected") if role in found}
    many = next((name for name in COMPLETIONS if name in present and name != found.get("prompt")), None)
    if "prompt" in found and many:
        return {"prompt": found["prompt"], "completions": many}
    answers = [name for name in present if _role_of(name) == "completion"]
    verdicts = [name for name in present if name not in (*answers, found.get("prompt")) and _is_choice(sample, name)]
    if "prompt" in found and len(answers) == 2 and len(verdicts) == 1:
        return {"prompt": found["prompt"], "first": answers[0], "second": answers[1], "verdict": verdicts[0]}
    if "prompt" in found and len(answers) == 1:  # of several, the first is no better a guess than the others
        return {role: found[role] for role in ("prompt", "completion", "label") if role in found}
    return {}


def _role_of(name: str) -> str | None:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    for role, known in _WORDS.items():
        hits = [word for word in words if word in known]
        if hits and role == "chosen" and any(word in _NEGATIONS for word in words):
            return "rejected"
        if hits:
            return role
    return None


def _is_choice(sample: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether the column has a few short values again and again."""
    values = [str(row.get(name)) for row in sample]
    return 1 < len(set(values)) < min(6, len(values)) and max(map(len, values)) < 20


def nearest(name: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
