"""A record as text: what its chat template, or none, makes of it, and what of it the template leaves out."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from .records import BadRowError, Completion, Message, Prompt, Record, text_of_content
from .templates import ChatTemplate
from .tokenizer import TextTokenizer

REASONING = ("reasoning_content", "reasoning", "thinking")
_KEYS_TOLD_BY_TEXT = frozenset(("role", "content", "tool_calls", "function_call", *REASONING))  # see `_pieces`
SHARES = ((0.01, "under 1%"), (0.1, "1% to 10%"), (0.5, "10% to 50%"), (0.9, "50% to 90%"), (2.0, "90% or more"))
_LEAST_RUN = 4  # characters; fewer agree by chance


@dataclass(frozen=True)
class Written:
    """The prompt as generation would see it and the whole text for each completion; `events` are to be counted."""

    prompt: str
    wholes: list[str]
    ends_turns: bool  # whether the text says where an answer ends
    events: frozenset[str] = frozenset()
    dropped_share: float = 0.0  # of the characters of its answers, those that the template does not write


def write(record: Record, tokenizer: TextTokenizer) -> Written:
    """BadRowError: the template refuses the record, or plain text cannot hold it."""
    events = _spelled_out(record, tokenizer)
    if tokenizer.is_plain:
        return _plain(record, tokenizer, events)
    if record.plain_only:
        raise BadRowError("has no prompt of its own; add a `prompt` column, or set data.chat_template to 'none'")
    return _chat(record, tokenizer.template_for(record.tools), events)


def _plain(record: Record, tokenizer: TextTokenizer, events: set[str]) -> Written:
    """Prefix, prompt, separator, answer, end. A space that ends the separator goes with the answer, whose first word
    it belongs to in most vocabularies."""
    form = tokenizer.form
    if record.plain_only and (form.prefix or form.separator):
        raise BadRowError(
            "has no prompt of its own, which data.prompt_prefix and data.answer_separator could surround; add a "
            "`prompt` column"
        )
    if record.tools:
        events.add("its tools are left out: plain text cannot hold them")
    between = form.separator.removesuffix(" ")
    lead = form.separator[len(between) :]
    prompt = form.prefix + plain_prompt(record.prompt) + between
    answers = [lead + plain_answer(completion) for completion in record.completions]
    if not record.plain_only and not prompt[-1:].isspace() and any(not answer[:1].isspace() for answer in answers):
        events.add("nothing stands between prompt and answer; data.answer_separator can")
    end = tokenizer.end_text
    wholes = [prompt + answer.removesuffix(end) + end for answer in answers]
    return Written(prompt, wholes, True, frozenset(events))


def plain_prompt(prompt: Prompt) -> str:
    return _only_text(prompt, "`prompt` is a conversation")


def plain_answer(completion: Completion) -> str:
    return _only_text(completion, "a completion has several turns, tool calls or reasoning")


def _only_text(messages: Prompt | Completion, what: str) -> str:
    if isinstance(messages, str):
        return messages
    if len(messages) > 1 or len(messages[0]) > 2:
        raise BadRowError(f"{what}, which plain text cannot hold; use a chat template")
    return text_of_content(messages[0]["content"])


def _chat(record: Record, template: ChatTemplate, events: set[str]) -> Written:
    prompt, answers = conversation_of(record)
    if template.takes_parts_alone:
        prompt, answers = _in_parts(prompt), [_in_parts(answer) for answer in answers]
    elif (_has_parts(prompt) or any(map(_has_parts, answers))) and not template.takes_parts:
        events.add("the chat template takes no parts of content; their texts were joined")
        prompt, answers = _joined(prompt), [_joined(answer) for answer in answers]
    render = partial(template.render, tools=record.tools, arguments=record.template_kwargs)
    asked = render(prompt, ask=True)
    wholes = [render((*prompt, *answer), ask=False) for answer in answers]
    if record.tools or record.template_kwargs or template.has_arguments:
        events |= _unused(record, template, asked)
    events |= _unread_keys((*prompt, *chain.from_iterable(answers)), template)
    if not all(_stands_in(message, asked) for message in prompt):
        events.add("the chat template leaves out part of the prompt")
    if any(message["role"] != "assistant" for answer in answers for message in answer):
        events.add("the answer holds turns of others than the assistant, which are scored too")
    dropped = 0.0
    if not all(_stands_in(message, whole) for answer, whole in zip(answers, wholes, strict=True) for message in answer):
        dropped = _dropped_share(answers, wholes, asked)
    if dropped:
        share = next(words for limit, words in SHARES if dropped < limit)
        events.add(f"the chat template leaves out {share} of the answers' text, which is not scored")
    return Written(asked, wholes, template.ends_turns, frozenset(events), dropped)


def conversation_of(record: Record) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Prompt and completions as messages: a string is one, the user's or the assistant's."""
    text = record.prompt
    prompt: tuple[Message, ...] = ({"role": "user", "content": text},) if isinstance(text, str) else text
    answers: list[tuple[Message, ...]] = [
        ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
        for answer in record.completions
    ]
    return prompt, answers


def _has_parts(messages: tuple[Message, ...]) -> bool:
    return any(isinstance(message["content"], list) for message in messages)


def _in_parts(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Writes as TRL does for models that see images, whose templates write parts alone."""
    return tuple(
        {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) and content else message
        for message, content in ((message, message["content"]) for message in messages)
    )


def _joined(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(
        {**message, "content": text_of_content(message["content"])} if isinstance(message["content"], list) else message
        for message in messages
    )


def _unused(record: Record, template: ChatTemplate, asked: str) -> set[str]:
    """Tools and arguments that the template does not look at."""
    events = set()
    if record.tools and not any(name in asked for name in map(_tool_name, record.tools)):
        events.add("the chat template leaves out the tools")
    unknown = sorted(template.unknown_arguments(record.template_kwargs))
    if unknown:
        events.add(f"the chat template has no use for {', '.join(unknown)} (chat_template_kwargs)")
    return events


def _unread_keys(messages: Sequence[Message], template: ChatTemplate) -> set[str]:
    """One event for each key of a message that holds something and that the template has no use for."""
    keys = {
        key
        for message in messages
        if len(message) > 2
        for key, value in message.items()
        if key not in _KEYS_TOLD_BY_TEXT and value not in (None, "", [], {})
    }
    return {
        f"the chat template has no use for `{key[:40]}`, a key of messages" for key in keys if template.ignores(key)
    }


def _tool_name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    return str((function if isinstance(function, dict) else tool).get("name"))


def _stands_in(message: Message, text: str) -> bool:
    content = message["content"]
    if len(message) == 2 and isinstance(content, str):
        return content in text or content.strip() in text
    return all(piece in text or piece.strip() in text for piece in _pieces(message))


def _pieces(message: Message) -> Iterator[str]:
    """All that a message says, in strings that a template would write as they stand."""
    content = message["content"]
    yield from (part["text"] for part in content) if isinstance(content, list) else (content or "",)
    yield from (message[key] for key in REASONING if isinstance(message.get(key), str))
    calls = message.get("tool_calls") or ()
    single = message.get("function_call")
    for call in [*(calls if isinstance(calls, (list, tuple)) else ()), *([single] if single else ())]:
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function, dict):
            yield str(function.get("name") or "")
            yield from _words(function.get("arguments"))


def _words(arguments: Any) -> Iterator[str]:
    """The words of a call's arguments, however a template quotes and escapes them."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            yield from arguments.split()
            return
        if isinstance(arguments, str):
            yield from arguments.split()
            return
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield from (*str(key).split(), *_words(value))
    elif isinstance(arguments, (list, tuple)):
        for value in arguments:
            yield from _words(value)


def _dropped_share(answers: Sequence[tuple[Message, ...]], wholes: Sequence[str], asked: str) -> float:
    """Returns the share of the answers' characters, spaces apart, that do not follow the prompt in the text."""
    said = lost = 0
    for answer, whole in zip(answers, wholes, strict=True):
        # What generation is started with (`<think>`) may be the answer's own beginning.
        shared = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(asked))
        start = max(0, shared - 40)
        written = "".join(whole[start:].split())
        for piece in (piece for message in answer for piece in _pieces(message)):
            compact = "".join(piece.split())
            said += len(compact)
            if compact not in written:
                lost += len(compact) - _kept(compact, written)
    return lost / said if said else 0.0


def _kept(piece: str, written: str) -> int:
    """Characters of the piece's end and beginning that are written: templates cut at the reasoning's end."""
    tail = bisect_right(range(len(piece)), 0, key=lambda size: piece[len(piece) - size :] not in written) - 1
    head = bisect_right(range(len(piece)), 0, key=lambda size: piece[:size] not in written) - 1
    kept = (tail if tail >= _LEAST_RUN else 0) + (head if head >= _LEAST_RUN else 0)
    return min(kept, len(piece))


def _spelled_out(record: Record, tokenizer: TextTokenizer) -> set[str]:
    """Special tokens in the row's own text: they become tokens, as in transformers, whoever wrote them."""
    found: set[str] = set()
    for text in (record.prompt, *record.completions):
        for piece in (text,) if isinstance(text, str) else (p for message in text for p in _pieces(message)):
            found |= tokenizer.spelled_out(piece)
    if tokenizer.is_plain:
        found -= {tokenizer.end_text}
    if not found:
        return set()
    advice = "" if tokenizer.is_plain else "; of text that has a template already, set data.chat_template to 'none'"
    return {f"special tokens are spelled out in its text and become tokens: {', '.join(sorted(found))}{advice}"}
