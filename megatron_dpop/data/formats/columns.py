"""Columns to prompts and completions: what the formats have in common."""

from collections.abc import Mapping
from typing import Any

from ..records import BadRowError, Completion, Message, Prompt, answer_of, kind_of, messages_of, text_of

Row = Mapping[str, Any]


def column(row: Row, name: str) -> Any:
    if name not in row:
        raise BadRowError(f"missing `{name}`")
    return row[name]


def text(row: Row, name: str) -> str:
    return text_of(column(row, name), name)


def prompt_of(row: Row, name: str, system_name: str | None = None) -> Prompt:
    """A string or messages, led by the system column's text where that is there and not empty."""
    value = column(row, name)
    prompt: Prompt = messages_of(value, name) if isinstance(value, list) else text_of(value, name)
    system = row.get(system_name) if system_name else None
    if system is None or not text_of(system, str(system_name)).strip():
        return prompt
    lead: Message = {"role": "system", "content": system}
    return (lead, {"role": "user", "content": prompt}) if isinstance(prompt, str) else (lead, *prompt)


def completion_of(value: Any, name: str) -> Completion:
    """A completion: a string, or the assistant's messages in a list."""
    return answer_of(messages_of(value, name)) if isinstance(value, list) else text_of(value, name)


def list_of(row: Row, name: str) -> list[Any]:
    value = column(row, name)
    if not isinstance(value, list):
        raise BadRowError(f"`{name}` is {kind_of(value)}; a list is needed")
    return value


def number_of(value: Any, name: str) -> float:
    """A finite number, also one written as text (CSV has nothing else)."""
    try:
        number = float("nan") if value is None or isinstance(value, (bool, list, dict)) else float(value)
    except ValueError:
        number = float("nan")
    if number != number or abs(number) == float("inf"):
        raise BadRowError(f"`{name}` is {str(value)[:40]!r}; a finite number is needed")
    return number


def label_of(value: Any, name: str) -> bool:
    """true or false, also as 1 or 0, or as text."""
    labels = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = labels.get(str(value).strip().lower())
    if label is None:
        raise BadRowError(f"`{name}` is {str(value)[:40]!r}; true or false is needed")
    return label
