"""Records to tokens, with the boundary between prompt and completion where generation has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpop_base.choices import TooLong

from .records import BadRowError, Record
from .tokenizer import TextTokenizer
from .written import Written, write


@dataclass(frozen=True)
class TokenizedRecord:
    """One record's tokens. `events` name what a user should know of: each is counted over the file."""

    prompt: np.ndarray  # int32 [prompt_tokens]
    completions: tuple[np.ndarray, ...]  # int32 [completion_tokens] each
    preferred: tuple[bool, ...]
    events: tuple[str, ...] = ()
    dropped_share: float = 0.0  # of the answers' characters, those that the chat template leaves out


def tokenise(
    records: Sequence[Record], tokenizer: TextTokenizer, *, max_tokens: int, too_long: TooLong
) -> list[TokenizedRecord | BadRowError | None]:
    """Tokens of each record, None for one that is dropped as too long, BadRowError for one that cannot be used.

    All texts are encoded in one batch. Prompt plus longest completion is at most `max_tokens`.
    """
    rendered: list[Written | BadRowError] = []
    for record in records:
        try:
            rendered.append(write(record, tokenizer))
        except BadRowError as problem:
            rendered.append(problem)
    encoded = _encode([item for item in rendered if not isinstance(item, BadRowError)], tokenizer)
    result: list[TokenizedRecord | BadRowError | None] = []
    for record, item in zip(records, rendered, strict=True):
        if isinstance(item, BadRowError):
            result.append(item)
            continue
        try:
            result.append(_fit(_join(record, item, next(encoded), tokenizer), max_tokens, too_long, tokenizer))
        except BadRowError as problem:
            result.append(problem)
    return result


def _encode(texts: Sequence[Written], tokenizer: TextTokenizer) -> Iterator[list[list[int]]]:
    """Returns each text's tokens, the prompt's first and then each whole's.

    What all of them begin with, up to the prompt's last special token, is encoded once: encoding is most of the
    work, and prompts are half of the text.
    """
    parts: list[str] = []
    counts: list[int] = []
    for written in texts:
        prompt, wholes = written.prompt, written.wholes
        cut = tokenizer.cut(prompt)
        if not all(whole.startswith(prompt[:cut]) for whole in wholes):
            cut = 0
        parts += [prompt[:cut], prompt[cut:], *(whole[cut:] for whole in wholes)]
        counts.append(1 + len(wholes))
    ids = iter(tokenizer.encode(parts))
    for count in counts:
        head = next(ids)
        yield [head + next(ids) for _ in range(count)]


def _join(record: Record, written: Written, ids: list[list[int]], tokenizer: TextTokenizer) -> TokenizedRecord:
    prompt_text, full_texts = written.prompt, written.wholes
    prompt, fulls = ids[0], ids[1:]
    events = set(written.events)
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
        if not completion or not (written.ends_turns or not tokenizer.added_ids.isdisjoint(completion[-3:])):
            completion.append(tokenizer.end_id)
            events.add("the template ends no turn; the end-of-sequence token was added")
    if len({tuple(completion) for completion in completions}) < len(completions):
        raise BadRowError(
            "the completions are identical once tokenised"
            + ("; the chat template leaves out what they differ in" if written.dropped_share else "")
        )
    if tokenizer.is_plain and tuple(prompt[: len(tokenizer.prefix_ids)]) != tokenizer.prefix_ids:
        prompt = [*tokenizer.prefix_ids, *prompt]
    if not prompt:
        raise BadRowError("no token of the prompt stands before the completion, which needs one to follow")
    tokens = tuple(map(_int32, completions))
    return TokenizedRecord(_int32(prompt), tokens, record.preferred, tuple(sorted(events)), written.dropped_share)


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


def _fit(
    example: TokenizedRecord, max_tokens: int, too_long: TooLong, tokenizer: TextTokenizer
) -> TokenizedRecord | None:
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
    return replace(example, prompt=prompt, events=(*example.events, "prompt truncated"))


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
