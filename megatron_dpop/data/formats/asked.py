"""What an answer answers: the prompt with its system text, history, tools and the template's arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..records import (
    LEADING,
    BadRowError,
    Completion,
    Message,
    Prompt,
    Record,
    check_record,
    readable,
    template_kwargs_of,
    text_of,
    tools_of,
)
from .fields import Notes, RowFields
from .transcripts import nemo_prompt, open_transcript
from .turns import said, turns_of

_PLACEHOLDERS = ("<image>", "<video>", "<audio>")


@dataclass(frozen=True)
class Asked:
    prompt: Prompt
    tools: tuple[dict[str, Any], ...] | None
    template_kwargs: dict[str, Any]
    was_transcript: bool = False  # blanks before an answer belong to the mark that it follows

    def answered(
        self,
        completions: tuple[Completion, ...],
        preferred: tuple[bool, ...],
        names: tuple[str, ...],
        *,
        scores: tuple[float, ...] | None = None,
    ) -> Record:
        """The checked record; `names` are the fields that the completions came from."""
        if self.was_transcript:
            completions = tuple(text.lstrip() if isinstance(text, str) else text for text in completions)
        record = Record(
            self.prompt, completions, preferred, scores, tools=self.tools, template_kwargs=self.template_kwargs
        )
        return check_record(record, names)


def asked(fields: RowFields, notes: Notes) -> Asked:
    """The prompt of a row whose answers stand by themselves."""
    value, name = fields.need("prompt"), fields.name("prompt")
    if isinstance(value, Mapping) and "messages" in value:  # OpenAI's preference files
        for key in value.keys() - {"messages", "tools"}:
            notes.unused[f"{name}.{key}"] += 1
        tools = value.get("tools")
        return _asked(fields, notes, turns_of(value["messages"], f"{name}.messages"), tools, f"{name}.tools")
    prompt: Prompt = said(value, name)
    if isinstance(prompt, str):
        prompt = _with_input(fields, prompt)
        messages = None if notes.plain else open_transcript(prompt) or nemo_prompt(prompt)
        if messages is not None:
            return replace(_asked(fields, notes, messages), was_transcript=True)
    return _asked(fields, notes, prompt)


def after(fields: RowFields, notes: Notes, messages: tuple[Message, ...]) -> Asked:
    """The prompt of a row that holds a whole conversation, of which `messages` go before the answer."""
    return _asked(fields, notes, messages)


def _asked(fields: RowFields, notes: Notes, prompt: Prompt, tools: Any = None, tools_name: str = "") -> Asked:
    prompt = _with_system(fields, _with_history(fields, prompt))
    if notes.media:
        _refuse_placeholders(prompt, notes.media)
    if not tools:
        tools, tools_name = fields.get("tools"), fields.name("tools")
    kwargs = template_kwargs_of(fields.get("chat_template_kwargs"), fields.name("chat_template_kwargs"))
    return Asked(prompt, _tools(tools, tools_name), kwargs)


def _tools(value: Any, name: str) -> tuple[dict[str, Any], ...] | None:
    """Tools as chat templates know them: a bare description of a function is put into {type, function}."""
    tools = tools_of(value, name)
    if not tools:
        return None
    return tuple(
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool and "type" not in tool
        else tool
        for tool in tools
    )  # fmt: skip


def _with_input(fields: RowFields, prompt: str) -> str:
    if not fields.has("input"):
        return prompt
    extra = text_of(fields.get("input"), fields.name("input"))
    if not extra.strip():
        return prompt
    return f"{prompt}\n\n{extra}" if prompt.strip() else extra


def _with_history(fields: RowFields, prompt: Prompt) -> Prompt:
    if not fields.has("history"):
        return prompt
    earlier = turns_of(fields.get("history"), fields.name("history"))
    return (*earlier, *as_messages(prompt))


def _with_system(fields: RowFields, prompt: Prompt) -> Prompt:
    if not fields.has("system"):
        return prompt
    text, name = text_of(fields.get("system"), fields.name("system")), fields.name("system")
    if not text.strip():
        return prompt
    if not isinstance(prompt, str) and prompt and prompt[0]["role"] in LEADING:
        if readable(prompt[:1]).strip() == text.strip():
            return prompt
        raise BadRowError(f"`{name}` and the conversation's own system message differ; keep one of them")
    return ({"role": "system", "content": text}, *as_messages(prompt))


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _refuse_placeholders(prompt: Prompt, media: str) -> None:
    text = readable(prompt)
    found = next((mark for mark in _PLACEHOLDERS if mark in text), None)
    if found:
        raise BadRowError(f"the prompt asks about an {found} of `{media}`, which a model of text is not given")
