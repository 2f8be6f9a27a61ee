"""Turns of a conversation, in whatever form files have them, as messages."""

import json
from collections.abc import Mapping
from typing import Any

from ..records import BadRowError, Message, kind_of, messages_of, text_of

_ROLE_OF = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function-response", "tool_result", "tool_results"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "function-call", "tool_calls"), "call"),
    "system": "system",
    "developer": "developer",
}
_SPEAKER_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text")
# Objects that hold a question and its answer: Orca-chat, Firefly, and others.
_EXCHANGES = (("input", "output"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("user", "bot"))


def turns_of(value: Any, field: str) -> tuple[Message, ...]:
    """Messages of a list (or one, or JSON text) of turns; BadRowError names the entry that is wrong."""
    entries = _entries(value, field)
    if not entries:
        raise BadRowError(f"`{field}` is an empty list; at least one message is needed")
    turns: list[Any] = []
    for index, entry in enumerate(entries):
        turns += _turn(entry, f"{field}[{index}]")
    return messages_of(turns, field)


def said(value: Any, field: str) -> str | tuple[Message, ...]:
    """What a column of text or messages holds."""
    if isinstance(value, str):
        written = _written_out(value)
        return text_of(value, field) if written is None else turns_of(written, field)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        if len(value) > 1:
            raise BadRowError(f"`{field}` is a list of {len(value)} strings; one text, or messages, are needed")
        return text_of(value[0], f"{field}[0]")
    if not isinstance(value, (list, Mapping)):
        raise BadRowError(f"`{field}` is {kind_of(value)}; a string is needed")
    return turns_of(value, field)


def _written_out(text: str) -> list[Any] | None:
    """Messages that stand as JSON text in a column of text (CSV has no other); None of any other text."""
    if not text.startswith(("[{", "[ {")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    are_turns = all(
        isinstance(entry, Mapping)
        and any(key in entry for key in _SPEAKER_KEYS)
        and any(key in entry for key in _TEXT_KEYS)
        for entry in value
    )
    return value if are_turns else None


def _entries(value: Any, field: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, (list, Mapping)):
            raise BadRowError(f"`{field}` is a string; a list of messages is needed")
    if isinstance(value, Mapping):
        return _entries_of_object(value)
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f"`{field}` is {kind_of(value)}; a list of messages is needed")
    return list(value)


def _entries_of_object(value: Mapping[str, Any]) -> list[Any]:
    """One message, or several: in a list of that name, or as columns (`datasets` writes a list of objects so)."""
    if isinstance(value.get("messages"), list) and "role" not in value:
        return list(value["messages"])
    columns = list(value.values())
    if columns and all(isinstance(column, list) for column in columns) and len({len(c) for c in columns}) == 1:
        return [dict(zip(value, entry, strict=True)) for entry in zip(*columns, strict=True)]
    return [value]


def _turn(entry: Any, field: str) -> list[Any]:
    if isinstance(entry, (list, tuple)) and len(entry) == 2:
        return _exchange(entry[0], entry[1], field)
    if not isinstance(entry, Mapping):
        return [entry]  # `messages_of` says what is wrong with it
    speaker = next((key for key in _SPEAKER_KEYS if key in entry), None)
    if speaker is None:
        for question, answer in _EXCHANGES:
            if question in entry:
                return _exchange(entry[question], entry.get(answer), field)
        return [entry]
    role = _role(entry[speaker], f"{field}.{speaker}")
    text_key = next((key for key in _TEXT_KEYS if key in entry), None)
    message: Message = {"role": role}
    if text_key is not None:
        message["content"] = entry[text_key]
    message.update({key: value for key, value in entry.items() if key not in (speaker, text_key)})
    if isinstance(message.get("content"), list) and _has_values(message["content"]):
        return [_of_parts(message, field)]
    return [_call(message, field)] if role == "call" else [message]


def _has_values(parts: list[Any]) -> bool:
    return any(isinstance(part, Mapping) and "type" in part and "value" in part for part in parts)


def _of_parts(message: Message, field: str) -> Message:
    """LLaMA-Factory's second form: parts of {type, value}, of which reasoning and calls have keys of their own."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, part in enumerate(message["content"]):
        name = f"{field}.content[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "reasoning", "tool_call"):
            raise BadRowError(f"`{name}` is {str(kind)[:40]!r}; only text, reasoning and tool calls can be used")
        value = text_of(part.get("value"), f"{name}.value")
        if kind == "tool_call":
            calls += _call({"content": value}, name)["tool_calls"]
        else:
            (texts if kind == "text" else reasoning).append(value)
    found = {**message, "content": "".join(texts)}
    if reasoning:
        found["reasoning_content"] = "".join(reasoning)
    return {**found, "tool_calls": calls} if calls else found


def _role(name: Any, field: str) -> str:
    role = _ROLE_OF.get(text_of(name, field).strip().lower())
    if role is None:
        known = ", ".join(name for name in _ROLE_OF if "-" not in name)
        raise BadRowError(f"`{field}` is {name[:40]!r}; it is one of {known}")
    return role


def _exchange(question: Any, answer: Any, field: str) -> list[Message]:
    """A question and its answer, which the last turn may lack."""
    turns: list[Message] = [{"role": "user", "content": text_of(question, field)}]
    if answer is not None and answer != "":
        turns.append({"role": "assistant", "content": text_of(answer, field)})
    return turns


def _call(message: Message, field: str) -> Message:
    """LLaMA-Factory's turn of a call: JSON text of one {name, arguments} or of a list of them."""
    value = message.get("content")
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not calls or not all(_is_call(call) for call in calls):
        raise BadRowError(f"`{field}` is a function call, but not JSON of a name and arguments")
    functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    listed = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": listed}


def _is_call(call: Any) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("name"), str) and "arguments" in call
