"""One completion a row: a label that says good or bad, or a demonstration to imitate."""

from ..records import BadRowError, Message, Record, answer_of, check_record, kind_of, messages_of
from .columns import Row, column, completion_of, label_of, list_of, prompt_of, text

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def labelled(row: Row) -> list[Record]:
    """prompt, completion, label (KTO)."""
    completion = completion_of(column(row, "completion"), "completion")
    label = label_of(column(row, "label"), "label")
    return [check_record(Record(prompt_of(row, "prompt", "system"), (completion,), (label,)), ("completion",))]


def prompt_completion(row: Row) -> list[Record]:
    return _demonstration(row, "prompt", "completion", "system")


def query_response(row: Row) -> list[Record]:
    """query, response (MetaMath)."""
    return _demonstration(row, "query", "response", None)


def question_response(row: Row) -> list[Record]:
    """system_prompt, question, response (OpenOrca)."""
    return _demonstration(row, "question", "response", "system_prompt")


def instruction_output(row: Row) -> list[Record]:
    """instruction, input, output (Alpaca): the input follows the instruction after an empty line."""
    instruction, extra = text(row, "instruction"), row.get("input")
    prompt = f"{instruction}\n\n{text(row, 'input')}" if extra else instruction
    return [check_record(Record(prompt, (text(row, "output"),), (True,)), ("output",))]


def _demonstration(row: Row, prompt: str, completion: str, system: str | None) -> list[Record]:
    answer = completion_of(column(row, completion), completion)
    return [check_record(Record(prompt_of(row, prompt, system), (answer,), (True,)), (completion,))]


def messages(row: Row) -> list[Record]:
    return _every_answer(messages_of(column(row, "messages"), "messages"), "messages")


def sharegpt(row: Row) -> list[Record]:
    """conversations of {from, value} (ShareGPT), or of {role, content}."""
    turns: list[Message] = []
    for index, turn in enumerate(list_of(row, "conversations")):
        field = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise BadRowError(f"`{field}` is {kind_of(turn)}; an object with from and value is needed")
        if "from" not in turn:
            turns += messages_of([turn], field)
            continue
        speaker = text(turn, "from")
        if speaker not in _SHAREGPT_ROLES:
            raise BadRowError(f"`{field}.from` is {speaker[:40]!r}; it is one of {', '.join(_SHAREGPT_ROLES)}")
        turns.append({"role": _SHAREGPT_ROLES[speaker], "content": text(turn, "value")})
    return _every_answer(tuple(turns), "conversations")


def orca_chat(row: Row) -> list[Record]:
    """conversation of {input, output}, and the system's instruction (Orca-chat)."""
    turns: list[Message] = []
    instruction = row.get("instruction")
    if instruction:
        turns.append({"role": "system", "content": text(row, "instruction")})
    for index, turn in enumerate(list_of(row, "conversation")):
        if not isinstance(turn, dict):
            raise BadRowError(f"`conversation[{index}]` is {kind_of(turn)}; an object with input and output is needed")
        turns.append({"role": "user", "content": text(turn, "input")})
        turns.append({"role": "assistant", "content": text(turn, "output")})
    return _every_answer(tuple(turns), "conversation")


def _every_answer(turns: tuple[Message, ...], name: str) -> list[Record]:
    """One record for every assistant message, with all that goes before it as the prompt."""
    records = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            if index == 0:
                raise BadRowError(f"roles out of order: `{name}` begins with the assistant")
            record = Record(turns[:index], (answer_of((turn,)),), (True,))
            records.append(check_record(record, (f"{name}[{index}]",)))
    if not records:
        raise BadRowError(f"`{name}` has no assistant message to learn")
    return records
