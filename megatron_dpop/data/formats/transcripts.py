"""Conversations written as one text: `Human:` and `Assistant:` turns, and NeMo-Aligner's marks."""

import re

from ..records import Message

_STYLES = (("Human", "Assistant"), ("Human", "AI"), ("User", "Assistant"), ("USER", "ASSISTANT"), ("User", "AI"))
_SYSTEM = ("System", "SYSTEM")
# Where a blank line parts the turns (Anthropic), an answer may hold a line that begins with a name; where lines do, the
# name may stand within one. Vicuna's turns stand in one line: USER: ... ASSISTANT: ...
_BEFORE_A_TURN = (r"(?:^|\n\n+)", r"(?:^|\n+)", r"(?:^|\s)")
_NEMO_START = "<extra_id_0>System\n"
_NEMO_TURN = "\n<extra_id_1>"


def is_transcript(text: str) -> bool:
    """Whether the text begins as a transcript does."""
    begin = text.lstrip()
    return begin.startswith(("Human:", "User:", "USER:", "System:", _NEMO_START)) and _split(text) is not None


def open_transcript(text: str) -> tuple[Message, ...] | None:
    """The messages of a prompt that ends where the assistant is to begin; None where the text is no such thing."""
    turns = _split(text) if is_transcript(text) else None
    if turns is None or len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-1]["content"]:
        return None
    return tuple(turns[:-1])


def nemo_prompt(text: str) -> tuple[Message, ...] | None:
    """The messages of a prompt that begins with the user's text and has NeMo's marks before later turns (HelpSteer)."""
    if text.startswith(_NEMO_START) or f"{_NEMO_TURN}Assistant\n" not in text:
        return None
    turns = _nemo(f"{_NEMO_START}{_NEMO_TURN}User\n{text}")
    return tuple(turns) if turns and turns[-1]["role"] == "user" else None


def whole_transcript(text: str) -> tuple[Message, ...] | None:
    """The messages of a conversation that ends with an answer; None where the text is no such thing."""
    turns = _split(text)
    if turns is None or len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    return tuple(turns)


def without_nemo_end(answer: str) -> str:
    """An answer of NeMo-Aligner's files without the mark of the turn behind it."""
    return answer.rstrip().removesuffix("<extra_id_1>").removesuffix("\n") if "<extra_id_1>" in answer else answer


def _split(text: str) -> list[Message] | None:
    text = text.lstrip()
    if text.startswith(_NEMO_START):
        return _nemo(text)
    for before in _BEFORE_A_TURN:
        for user, assistant in _STYLES:
            if not text.startswith((f"{user}:", *(f"{system}:" for system in _SYSTEM))):
                continue
            turns = _turns(text, re.compile(f"{before}({user}|{assistant}):"), user)
            if any(turn["role"] == "assistant" for turn in turns):
                return turns
    return None


def _turns(text: str, mark: re.Pattern[str], user: str) -> list[Message]:
    """The turns that begin with a mark; what stands before the first is a system text, where it says so."""
    marks = list(mark.finditer(text))
    if not marks or marks[0][1] != user:
        return []
    lead = text[: marks[0].start()].strip()
    messages: list[Message] = [{"role": "system", "content": lead.partition(":")[2].strip()}] if lead else []
    ends = [found.start() for found in marks[1:]] + [len(text)]
    for found, end in zip(marks, ends, strict=True):
        role = "user" if found[1] == user else "assistant"
        messages.append({"role": role, "content": text[found.end() : end].strip()})
    return messages


def _nemo(text: str) -> list[Message] | None:
    system, *turns = text.removeprefix(_NEMO_START).split(_NEMO_TURN)
    messages: list[Message] = [{"role": "system", "content": system.strip("\n")}] if system.strip() else []
    for turn in turns:
        name, _, content = turn.partition("\n")
        role = name.strip().lower()
        if role not in ("user", "assistant"):
            return None
        messages.append({"role": role, "content": content.strip("\n")})
    return messages
