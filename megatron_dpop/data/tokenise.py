"""Records to tokens, with the boundary between prompt and completion where generation has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from .records import BadRowError, Completion, Prompt, Record, text_of_content
from .tokenizer import TextTokenizer

TooLong = Literal["stop", "drop", "truncate_prompt"]
TOO_LONG: tuple[TooLong, ...] = ("stop", "drop", "truncate_prompt")


@dataclass(frozen=True)
class Tokenised:
    """One record's tokens. `events` name what a user should know of: each is counted over the file."""

    prompt: np.ndarray  # int32 [prompt_tokens]
    completions: tuple[np.ndarray, ...]  # int32 [completion_tokens] each
    preferred: tuple[bool, ...]
    events: tuple[str, ...] = ()


def tokenise(
    records: Sequence[Record], tokenizer: TextTokenizer, *, max_tokens: int, too_long: TooLong
) -> list[Tokenised | BadRowError | None]:
    """Tokens of each record, None for one that is dropped as too long, BadRowError for one that cannot be used.

    All texts are encoded in one batch. Prompt plus longest completion is at most `max_tokens`.
    """
    rendered: list[tuple[str, list[str]] | BadRowError] = []
    for record in records:
        try:
            rendered.append(_texts(record, tokenizer))
        except BadRowError as problem:
            rendered.append(problem)
    encoded = _encode([item for item in rendered if not isinstance(item, BadRowError)], tokenizer)
    result: list[Tokenised | BadRowError | None] = []
    for record, item in zip(records, rendered, strict=True):
        if isinstance(item, BadRowError):
            result.append(item)
            continue
        try:
            result.append(_fit(_join(record, item, next(encoded), tokenizer), max_tokens, too_long, tokenizer))
        except BadRowError as problem:
            result.append(problem)
    return result


def _texts(record: Record, tokenizer: TextTokenizer) -> tuple[str, list[str]]:
    """The prompt's text as generation would see it, and the whole text for each completion."""
    if tokenizer.is_plain:
        prompt = plain_prompt(record.prompt)
        end = tokenizer.end_text
        return prompt, [prompt + plain_answer(text).removesuffix(end) + end for text in record.completions]
    if record.plain_only:
        raise BadRowError("has no prompt of its own; add a `prompt` column, or set data.chat_template to 'none'")
    prompt_text = record.prompt
    messages = ({"role": "user", "content": prompt_text},) if isinstance(prompt_text, str) else prompt_text
    render = partial(tokenizer.render, tools=record.tools, arguments=record.template_kwargs)
    prompt = render(messages, ask=True)
    answers = [
        ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
        for answer in record.completions
    ]
    return prompt, [render((*messages, *answer), ask=False) for answer in answers]


def _encode(texts: Sequence[tuple[str, list[str]]], tokenizer: TextTokenizer) -> Iterator[list[list[int]]]:
    """For each (prompt, whole texts) their tokens, the prompt's first.

    What all of them begin with, up to the prompt's last special token, is encoded once: encoding is most of the
    work, and prompts are half of the text.
    """
    parts: list[str] = []
    counts: list[int] = []
    for prompt, wholes in texts:
        cut = tokenizer.cut(prompt)
        if not all(whole.startswith(prompt[:cut]) for whole in wholes):
            cut = 0
        parts += [prompt[:cut], prompt[cut:], *(whole[cut:] for whole in wholes)]
        counts.append(1 + len(wholes))
    ids = iter(tokenizer.encode(parts))
    for count in counts:
        head = next(ids)
        yield [head + next(ids) for _ in range(count)]


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


def _join(record: Record, texts: tuple[str, list[str]], ids: list[list[int]], tokenizer: TextTokenizer) -> Tokenised:
    prompt_text, full_texts = texts
    prompt, fulls = ids[0], ids[1:]
    events: set[str] = set()
    completions: list[list[int]] = []
    if all(text.startswith(prompt_text) for text in full_texts):
        for text, full in zip(full_texts, fulls, strict=True):
            if full[: len(prompt)] == prompt:
                completions.append(full[len(prompt) :])
            else:
                completions.append(_continuation(text[len(prompt_text) :], prompt, full, tokenizer))
                events.add("tokens would merge across the boundary; the completion was tokenised on its own")
    else:
        kept = min(_common_prefix(prompt, full) for full in fulls)
        prompt, completions = prompt[:kept], [full[kept:] for full in fulls]
        events.add("the template writes the prompt differently before an answer; the prompt ends where they part")
    for completion in completions:
        if not completion or tokenizer.special_ids.isdisjoint(completion[-3:]):
            completion.append(tokenizer.end_id)
            events.add("the template ends no turn; the end-of-sequence token was added")
    if len({tuple(completion) for completion in completions}) < len(completions):
        raise BadRowError("the completions are identical once tokenised")
    if tokenizer.is_plain and tuple(prompt[: len(tokenizer.prefix_ids)]) != tokenizer.prefix_ids:
        prompt = [*tokenizer.prefix_ids, *prompt]
    if not prompt:
        raise BadRowError("no token of the prompt stands before the completion, which needs one to follow")
    return Tokenised(_int32(prompt), tuple(map(_int32, completions)), record.preferred, tuple(sorted(events)))


def _continuation(text: str, prompt: list[int], full: list[int], tokenizer: TextTokenizer) -> list[int]:
    """Tokens of `text` as it follows a prompt whose last token must stay whole.

    SentencePiece puts a space before a text that begins, so the text is encoded behind an anchor, and the result
    is right if prompt and continuation together read as the whole.
    """
    whole = tokenizer.decode(full)
    anchors = (tokenizer.end_text, "\n", "|", "0", "a")
    alone_ids, followed_ids = (
        tokenizer.encode(anchors),
        tokenizer.encode([anchor + text for anchor in anchors]),
    )
    for alone, followed in zip(alone_ids, followed_ids, strict=True):
        if followed[: len(alone)] == alone and tokenizer.decode(prompt + followed[len(alone) :]) == whole:
            return followed[len(alone) :]
    return tokenizer.encode([text])[0]


def _fit(example: Tokenised, max_tokens: int, too_long: TooLong, tokenizer: TextTokenizer) -> Tokenised | None:
    longest = max(len(completion) for completion in example.completions)
    total = len(example.prompt) + longest
    if total <= max_tokens:
        return example
    if too_long == "stop":
        raise BadRowError(
            f"{total} tokens ({len(example.prompt)} prompt + {longest} completion), more than data.max_tokens "
            f"{max_tokens}; raise it, or set data.too_long to drop or truncate_prompt"
        )
    # A first token such as beginning-of-sequence is kept: without it every later token's context is unlike training.
    kept_first = int(len(example.prompt) > 0 and int(example.prompt[0]) in tokenizer.special_ids)
    room = max_tokens - longest - kept_first
    if too_long == "drop" or room < 1:
        return None
    prompt = np.concatenate([example.prompt[:kept_first], example.prompt[-room:]])
    return Tokenised(prompt, example.completions, example.preferred, (*example.events, "prompt truncated"))


def common_prefix_tokens(completions: Sequence[np.ndarray]) -> int:
    """Length of the prefix that all completions share; 0 for a single one, which shares with nobody."""
    if len(completions) < 2:
        return 0
    shortest = min(len(completion) for completion in completions)
    first = completions[0][:shortest]
    same = np.logical_and.reduce([first == other[:shortest] for other in completions[1:]])
    return int(shortest if same.all() else np.argmin(same))


def _common_prefix(left: list[int], right: list[int]) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _int32(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int32)
