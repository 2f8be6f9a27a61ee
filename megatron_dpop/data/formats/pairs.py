"""Pairs: a chosen and a rejected answer, with the prompt beside them or within."""

from ..records import (
    BEFORE_AN_ANSWER,
    BadRowError,
    Completion,
    Message,
    Record,
    answer_of,
    check_record,
    identity,
    kind_of,
    readable,
    text_of,
)
from .asked import after, asked
from .fields import Notes, RowFields
from .transcripts import is_transcript, whole_transcript, without_nemo_end
from .turns import said, turns_of

SIDES = ("chosen", "rejected")


def pair(fields: RowFields, notes: Notes) -> list[Record]:
    """A prompt with two answers, or two conversations of which the prompt, if it is there, repeats the beginning."""
    sides = [_side(fields, role, notes) for role in SIDES]
    names = tuple(fields.name(role) for role in SIDES)
    return compare(fields, notes, sides, names)


def compare(
    fields: RowFields, notes: Notes, sides: list[str | tuple[Message, ...]], names: tuple[str, ...]
) -> list[Record]:
    """The record of two answers or conversations, the better one first."""
    whole = [not isinstance(side, str) and side[0]["role"] in BEFORE_AN_ANSWER for side in sides]
    if all(whole):
        chosen, rejected = sides
        assert not isinstance(chosen, str)
        assert not isinstance(rejected, str)
        return [_conversations(fields, notes, chosen, rejected, names)]
    if any(whole):
        long, short = names if whole[0] else names[::-1]
        raise BadRowError(f"`{long}` is a whole conversation and `{short}` an answer; both must be the same")
    if "prompt" not in fields.columns and not fields.has("history"):
        chosen, rejected = sides
        if isinstance(chosen, str) and isinstance(rejected, str):
            return [_running_text(chosen, rejected, names)]
        raise BadRowError(f"`{names[0]}` and `{names[1]}` share no prompt")
    answers: tuple[Completion, ...] = tuple(side if isinstance(side, str) else answer_of(side) for side in sides)
    return [asked(fields, notes).answered(answers, (True, False), names)]


def _side(fields: RowFields, role: str, notes: Notes) -> str | tuple[Message, ...]:
    """An answer's text or messages, or a whole conversation's messages."""
    value, name = fields.need(role), fields.name(role)
    side = said(value, name)
    if not isinstance(side, str):
        return side
    if notes.plain:
        return side
    side = without_nemo_end(side)
    if is_transcript(side):
        messages = whole_transcript(side)
        if messages is None:
            raise BadRowError(f"`{name}` is a transcript that does not end with an answer")
        return messages
    return side


def _conversations(
    fields: RowFields,
    notes: Notes,
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    names: tuple[str, ...],
) -> Record:
    """The prompt is what both begin with; what follows begins with the assistant's answer."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise BadRowError(f"`{names[0]}` and `{names[1]}` share no prompt")
    for name, side, other in zip(names, (chosen, rejected), names[::-1], strict=True):
        if side[shared]["role"] != "assistant":
            raise BadRowError(
                f"`{name}` and `{other}` part at a message that is not the assistant's; what differs must be an answer"
            )
    if chosen[shared] == rejected[shared] and len(chosen) != len(rejected):
        longer, shorter = names if len(chosen) > len(rejected) else names[::-1]
        raise BadRowError(f"`{longer}` only goes on where `{shorter}` ends; two answers are needed")
    _check_repeated(fields, notes, chosen[:shared])
    answers = answer_of(chosen[shared:]), answer_of(rejected[shared:])
    return after(fields, notes, chosen[:shared]).answered(answers, (True, False), names)


def _check_repeated(fields: RowFields, notes: Notes, shared: tuple[Message, ...]) -> None:
    """A prompt beside whole conversations repeats what they begin with; one that does not is not used."""
    if not fields.has("prompt"):
        return
    value, name = fields.get("prompt"), fields.name("prompt")
    if isinstance(value, str):
        if not any(value.strip() in readable((message,)) for message in shared) and not is_transcript(value):
            notes.unused[f"{name} (the conversations begin with other text)"] += 1
        return
    given = turns_of(value, name)
    if given != shared[: len(given)] and given[: len(shared)] != shared:
        raise BadRowError(
            f"`{name}` is not what the conversations of `{fields.name('chosen')}` and `{fields.name('rejected')}` "
            "begin with; leave it out, or leave those to answers"
        )


def conversation_with_rejected(fields: RowFields, notes: Notes) -> list[Record]:
    """messages that end with the chosen answer, and rejected_response or rejected_messages (ms-swift)."""
    name, rejected_name = fields.name("messages"), fields.name("rejected")
    chosen = turns_of(fields.need("messages"), name)
    value = fields.need("rejected")
    rejected = said(value, rejected_name)
    names = (name, rejected_name)
    if not isinstance(rejected, str) and rejected[0]["role"] in BEFORE_AN_ANSWER:
        return [_conversations(fields, notes, chosen, rejected, names)]
    if chosen[-1]["role"] != "assistant" or len(chosen) < 2:
        raise BadRowError(f"`{name}` does not end with an answer that `{rejected_name}` could be compared with")
    answers = answer_of(chosen[-1:]), rejected if isinstance(rejected, str) else answer_of(rejected)
    return [after(fields, notes, chosen[:-1]).answered(answers, (True, False), names)]


def listed_answers(fields: RowFields, notes: Notes) -> list[Record]:
    """A list of two answers, the better one first (LLaMA-Factory's former `output`)."""
    value, name = fields.need("completion"), fields.name("completion")
    if not isinstance(value, list):
        raise BadRowError(f"`{name}` is {kind_of(value)}; a list of two answers is needed, the better one first")
    if len(value) != 2:
        raise BadRowError(f"`{name}` has {len(value)} answers; two are needed, the better one first")
    texts = [text_of(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    return [asked(fields, notes).answered(tuple(texts), (True, False), (f"{name}[0]", f"{name}[1]"))]


def _running_text(chosen: str, rejected: str, names: tuple[str, ...]) -> Record:
    """TRL's rule: the prompt is the common prefix, less a space at its end, which belongs to the completions."""
    if identity(chosen) == identity(rejected):
        raise BadRowError(f"`{names[0]}` and `{names[1]}` are identical; a preference needs a difference")
    pairs = zip(chosen, rejected, strict=False)
    end = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    if end and chosen[end - 1] == " ":
        end -= 1
    record = Record(text_of(chosen[:end], "prompt"), (chosen[end:], rejected[end:]), (True, False), plain_only=True)
    return check_record(record, names)
