"""One example as text, whatever file or column names it came from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpop_base.errors import UserError

LEADING = ("system", "developer")
BEFORE_AN_ANSWER = (*LEADING, "user")
ROLES = (*BEFORE_AN_ANSWER, "assistant", "tool")
# Besides its content, what an assistant can say in a message.
SAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_DEEPEST = 64  # levels of lists and objects in a message, a tool or a template's argument

# role, content (a string, None or a list of text parts) and whatever other keys the row has, for the chat template
Message = dict[str, Any]
Prompt = str | tuple[Message, ...]
Completion = str | tuple[Message, ...]


@dataclass(frozen=True)
class Record:
    """A prompt and what may follow it; a string is plain text, or one message where a template is used.

    `preferred` has one entry a completion: a pair is (True, False), a single-label example has one of either
    value, supervised fine-tuning (True,). `scores` are ratings, higher is better, where the file has them. `tools`
    and `template_kwargs` are for the chat template.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    preferred: tuple[bool, ...]
    scores: tuple[float, ...] | None = None
    plain_only: bool = False  # the prompt was cut out of running text, so no template can be put around it
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


class BadRowError(ValueError):
    """What is wrong with one row, before its file and number are known."""


def located(path: object, where: str, problem: BadRowError) -> UserError:
    return UserError(f"{path}, {where}: {problem}")


def text_of(value: Any, field: str) -> str:
    """The string in `field`; BadRowError where it is no string, or one that UTF-8 cannot hold."""
    if not isinstance(value, str):
        raise BadRowError(f"`{field}` is {kind_of(value)}; a string is needed")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"`{field}` holds a lone surrogate at character {error.start}; write the text as valid Unicode"
        ) from None
    return value


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """A list of {role, content, ...}, checked; BadRowError names the entry that is wrong.

    Every message of the result has a role and a content, which is None where tool calls or reasoning stand for it;
    other keys are the row's own, less those that are null (an Arrow file has the keys of all rows in each).
    """
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f"`{field}` is {kind_of(value)}; a list of messages is needed")
    if not value:
        raise BadRowError(f"`{field}` is an empty list; at least one message is needed")
    return tuple(_message(entry, f"{field}[{index}]") for index, entry in enumerate(value))


def _message(entry: Any, field: str) -> Message:
    if not isinstance(entry, Mapping):
        raise BadRowError(f"`{field}` is {kind_of(entry)}; an object with role and content is needed")
    if "role" not in entry:
        found = ", ".join(f"`{key}`" for key in entry)[:80]
        raise BadRowError(
            f"`{field}` has no `role` but {found or 'nothing'}; a turn is {{role, content}} or {{from, value}}"
        )
    role = text_of(entry["role"], f"{field}.role")
    if role not in ROLES:
        raise BadRowError(f"`{field}.role` is {role[:40]!r}; it is one of {', '.join(ROLES)}")
    content = entry.get("content")
    message: Message = {"role": role, "content": content}
    if len(entry) > 2 or not isinstance(content, str):
        message.update({key: value for key, value in entry.items() if key not in message and value is not None})
        check_plain(message, field)
        _check_content(message, "content" in entry, field)
    else:
        text_of(content, f"{field}.content")
    return message


def _check_content(message: Message, given: bool, field: str) -> None:
    content = message["content"]
    if content is None:
        if message["role"] == "assistant" and any(message.get(key) for key in SAID):
            return
        if not given:
            raise BadRowError(f"`{field}` has no `content`")
        raise BadRowError(f"`{field}.content` is null; a string is needed")
    if isinstance(content, list):
        for index, part in enumerate(content):
            if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
                kind = repr(str(part.get("type"))[:40]) if isinstance(part, Mapping) else kind_of(part)
                raise BadRowError(f"`{field}.content[{index}]` is {kind}; only parts that hold a text can be used")
    elif not isinstance(content, str):
        raise BadRowError(f"`{field}.content` is {kind_of(content)}; a string is needed")


def check_plain(value: Any, field: str, depth: int = 0) -> None:
    """Lets pass what JSON can hold, with text that UTF-8 can, nested no deeper than any real message or tool."""
    if isinstance(value, str):
        text_of(value, field)
    elif isinstance(value, (Mapping, list, tuple)):
        if depth == _DEEPEST:
            raise BadRowError(f"`{field}` is nested deeper than {_DEEPEST} levels")
        if isinstance(value, Mapping):
            named = {f"{field}.{text_of(key, f'{field} key')}": entry for key, entry in value.items()}
        else:
            named = {f"{field}[{index}]": entry for index, entry in enumerate(value)}
        for name, entry in named.items():
            check_plain(entry, name, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise BadRowError(f"`{field}` is a {type(value).__name__}, which no chat template can write; make it text")


def tools_of(value: Any, field: str = "tools") -> tuple[dict[str, Any], ...] | None:
    """A row's tools: a list of objects, or one as JSON text; None where there are none."""
    value = _parsed(value, field)
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f"`{field}` is {kind_of(value)}; a list of tools is needed")
    tools = []
    for index, entry in enumerate(value):
        tool = _parsed(entry, f"{field}[{index}]")
        if not isinstance(tool, Mapping):
            raise BadRowError(f"`{field}[{index}]` is {kind_of(tool)}; an object that describes a tool is needed")
        check_plain(tool, f"{field}[{index}]")
        tools.append(dict(tool))
    return tuple(tools)


def template_kwargs_of(value: Any, field: str = "chat_template_kwargs") -> dict[str, Any]:
    """A row's arguments of the chat template: an object, or one as JSON text."""
    value = _parsed(value, field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRowError(f"`{field}` is {kind_of(value)}; an object is needed")
    check_plain(value, field)
    return dict(value)


def _parsed(value: Any, field: str) -> Any:
    """JSON that stands as text in a column."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRowError(f"`{field}` is a string that is no JSON") from None


def answer_of(messages: tuple[Message, ...]) -> Completion:
    """The messages as a completion: a string where they are one assistant's plain text and no more."""
    if len(messages) == 1:
        (message,) = messages
        if len(message) == 2 and message["role"] == "assistant" and isinstance(message["content"], str):
            return str(message["content"])
    return messages


def identity(text: Prompt | Completion) -> str:
    """Equal for equal texts and messages, different for others."""
    return text if isinstance(text, str) else "\0" + json.dumps(text, sort_keys=True, ensure_ascii=False)


def readable(text: Prompt | Completion) -> str:
    """Messages as text for people and for measures of text; plain text as it stands."""
    if isinstance(text, str):
        return text
    if len(text) == 1 and len(text[0]) == 2 and isinstance(text[0]["content"], str):
        return str(text[0]["content"])
    return "\n".join(f"{message['role']}: {_said(message)}" for message in text)


def _said(message: Message) -> str:
    parts = [text_of_content(message["content"])]
    for key, value in message.items():
        if key not in ("role", "content"):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"[{key}: {text}]")
    return " ".join(part for part in parts if part)


def text_of_content(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content, its parts joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def check_record(record: Record, names: Sequence[str]) -> Record:
    """The record itself, if it is fit to train on; `names` are the fields that its completions came from."""
    if _says_nothing(record.prompt):
        raise BadRowError("`prompt` is empty")
    if not isinstance(record.prompt, str):
        _check_order(record.prompt)
    first_of: dict[str, str] = {}
    for completion, name in zip(record.completions, names, strict=True):
        if _says_nothing(completion):
            raise BadRowError(f"`{name}` is empty; a completion needs text")
        if not isinstance(completion, str):
            _check_answer(completion, name)
        key = identity(completion)
        if key in first_of:
            raise BadRowError(f"`{first_of[key]}` and `{name}` are identical; a preference needs a difference")
        first_of[key] = name
    return record


def _says_nothing(text: Prompt | Completion) -> bool:
    """True for blank text and for no message at all; what messages say is for others to check."""
    return not (text.strip() if isinstance(text, str) else text)


def _check_answer(messages: tuple[Message, ...], name: str) -> None:
    """The assistant begins and ends an answer of messages, and says something."""
    for place, message in (("begins", messages[0]), ("ends", messages[-1])):
        if message["role"] != "assistant":
            raise BadRowError(f"roles out of order: `{name}` {place} with the {message['role']}, not the assistant")
    if not any(message["role"] == "assistant" and _is_said(message) for message in messages):
        raise BadRowError(f"`{name}` is empty; a completion needs text")


def _is_said(message: Message) -> bool:
    return bool(text_of_content(message["content"]).strip()) or any(message.get(key) for key in SAID)


def _check_order(messages: tuple[Message, ...]) -> None:
    """The user (or a tool) is last, whom the completion answers. Any other order is the chat template's to refuse."""
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRowError(f"roles out of order: the prompt ends with the {messages[-1]['role']}, not with the user")


def kind_of(value: Any) -> str:
    """The value's type in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, Mapping) else "a list"
