"""One completion a row: a label that says good or bad, or a demonstration to imitate."""

from ..records import BEFORE_AN_ANSWER, BadRowError, Message, Record, answer_of
from .asked import Asked, after, asked
from .fields import Notes, RowFields, is_missing_number, label_of
from .transcripts import is_transcript, whole_transcript, without_nemo_end
from .turns import said, turns_of

NOT_TRAINED = "an assistant turn that its weight of 0 excludes"
OPENING = "an assistant turn that opens the conversation and answers nothing"
UNLABELLED = "no label"
# Keys of a message that say whether it is trained on: OpenAI, LLaMA-Factory, ms-swift, axolotl.
_TRAINED_KEYS = ("weight", "loss_weight", "loss", "train", "training")


def labelled(fields: RowFields, notes: Notes) -> list[Record]:
    """A completion, or a whole conversation, and its label (KTO)."""
    label, name = fields.need("label"), fields.name("label")
    if is_missing_number(label):
        notes.leave_out(UNLABELLED)
        return []
    good = label_of(label, name)
    role = "completion" if "completion" in fields.columns else "messages"
    prompt, answer = _question_and_answer(fields, notes, role)
    return [prompt.answered((answer if isinstance(answer, str) else answer_of(answer),), (good,), (fields.name(role),))]


def demonstration(fields: RowFields, notes: Notes) -> list[Record]:
    """A prompt and an answer to imitate."""
    prompt, answer = _question_and_answer(fields, notes, "completion")
    completion = answer if isinstance(answer, str) else answer_of(answer)
    return [prompt.answered((completion,), (True,), (fields.name("completion"),))]


def _question_and_answer(fields: RowFields, notes: Notes, role: str) -> tuple[Asked, str | tuple[Message, ...]]:
    name = fields.name(role)
    value = said(fields.need(role), name)
    if isinstance(value, str) and not notes.plain:
        value = without_nemo_end(value)
        if is_transcript(value):
            value = whole_transcript(value) or value
    if not isinstance(value, str) and value[0]["role"] in BEFORE_AN_ANSWER:
        last = next((index for index in range(len(value) - 1, -1, -1) if value[index]["role"] == "assistant"), 0)
        if last != len(value) - 1:
            raise BadRowError(f"`{name}` does not end with the assistant's answer")
        return after(fields, notes, value[:last]), value[last:]
    if "prompt" not in fields.columns:
        raise BadRowError(f"`{name}` is an answer without a prompt; add a `prompt` column")
    return asked(fields, notes), value


def every_answer(fields: RowFields, notes: Notes) -> list[Record]:
    """One record for every assistant message, with all that goes before it as the prompt."""
    value, name = fields.need("messages"), fields.name("messages")
    turns = None
    if isinstance(value, str) and not notes.plain and is_transcript(value):
        turns = whole_transcript(value)
    turns = turns if turns is not None else turns_of(value, name)
    records, found = [], 0
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        found += 1
        if _is_excluded(turn):
            notes.leave_out(NOT_TRAINED)
        elif index == 0 and not (fields.has("system") or fields.has("history")):
            notes.leave_out(OPENING)
        else:
            prompt = after(fields, notes, turns[:index])
            records.append(prompt.answered((answer_of((turn,)),), (True,), (f"{name}[{index}]",)))
    if not found:
        raise BadRowError(f"`{name}` has no assistant message to learn")
    if not records and turns[0]["role"] == "assistant" and found == 1:
        raise BadRowError(f"roles out of order: `{name}` begins with the assistant, and nobody is answered")
    return records


def _is_excluded(turn: Message) -> bool:
    return any(key in turn and turn[key] in (0, False) for key in _TRAINED_KEYS)
