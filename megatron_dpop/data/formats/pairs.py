"""Pairs: a chosen and a rejected completion, with the prompt beside them or within."""

from ..records import BadRowError, Message, Record, answer_of, check_record, messages_of, text_of
from .columns import Row, column, completion_of, prompt_of, text

NAMES = ("chosen", "rejected")
_TURN = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def explicit_pair(row: Row) -> list[Record]:
    """prompt, chosen, rejected, and a system text if there is one; strings or messages (TRL, Truthy-DPO)."""
    return _pair_with_prompt(row, "prompt")


def question_pair(row: Row) -> list[Record]:
    """system, question, chosen, rejected (Intel/orca_dpo_pairs)."""
    return _pair_with_prompt(row, "question")


def _pair_with_prompt(row: Row, prompt_name: str) -> list[Record]:
    column(row, prompt_name)
    values = [column(row, name) for name in NAMES]
    if any(isinstance(value, list) and _starts_before_the_answer(value) for value in values):
        return implicit_messages(row)  # UltraFeedback-binarized: whole conversations, the prompt only repeats them
    completions = tuple(completion_of(value, name) for value, name in zip(values, NAMES, strict=True))
    return [check_record(Record(prompt_of(row, prompt_name, "system"), completions, (True, False)), NAMES)]


def _starts_before_the_answer(messages: list) -> bool:
    return len(messages) > 1 or bool(
        messages and isinstance(messages[0], dict) and messages[0].get("role") in ("system", "user")
    )


def implicit_pair(row: Row) -> list[Record]:
    """chosen and rejected with the prompt at the head of both: conversations, HH transcripts or running text."""
    if all(isinstance(column(row, name), list) for name in NAMES):
        return implicit_messages(row)
    chosen, rejected = (text(row, name) for name in NAMES)
    if all("\n\nAssistant:" in side and side.lstrip("\n").startswith("Human:") for side in (chosen, rejected)):
        return _pair_of_conversations(_transcript(chosen, "chosen"), _transcript(rejected, "rejected"))
    return [_running_text(chosen, rejected)]


def implicit_messages(row: Row) -> list[Record]:
    chosen, rejected = (messages_of(column(row, name), name) for name in NAMES)
    return _pair_of_conversations(chosen, rejected)


def _pair_of_conversations(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> list[Record]:
    """The prompt is what both begin with; one assistant message of each must be left."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    for name, side in zip(NAMES, (chosen, rejected), strict=True):
        if len(side) != shared + 1 or side[-1]["role"] != "assistant":
            raise BadRowError(
                f"`{name}` has {len(side) - shared} messages after the {shared} that both begin with; "
                "exactly one, the assistant's, can be compared"
            )
    if not shared:
        raise BadRowError("`chosen` and `rejected` share no prompt")
    completions = answer_of(chosen[-1:]), answer_of(rejected[-1:])
    return [check_record(Record(chosen[:shared], completions, (True, False)), NAMES)]


def _transcript(text: str, name: str) -> tuple[Message, ...]:
    """Messages of an Anthropic HH transcript."""
    text = "\n\n" + text.lstrip("\n")
    messages: list[Message] = []
    while text:
        mark = next((mark for mark in _TURN if text.startswith(mark)), None)
        if mark is None:
            raise BadRowError(f"`{name}` is no transcript of Human: and Assistant: turns")
        ends = [end for other in _TURN if (end := text.find(other, len(mark))) >= 0]
        end = min(ends, default=len(text))
        messages.append({"role": _TURN[mark], "content": text[len(mark) : end].strip()})
        text = text[end:]
    return tuple(messages)


def _running_text(chosen: str, rejected: str) -> Record:
    """TRL's rule: the prompt is the common prefix, less a space at its end, which belongs to the completions."""
    if chosen == rejected:
        raise BadRowError("`chosen` and `rejected` are identical; a preference needs a difference")
    pairs = zip(chosen, rejected, strict=False)
    end = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    if end and chosen[end - 1] == " ":
        end -= 1
    record = Record(text_of(chosen[:end], "prompt"), (chosen[end:], rejected[end:]), (True, False), plain_only=True)
    return check_record(record, NAMES)
