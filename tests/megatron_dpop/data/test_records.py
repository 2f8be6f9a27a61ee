"""Messages as a row has them: kept whole, checked, told apart."""

from typing import Any

import pytest

from megatron_dpop.data.records import (
    BadRowError,
    Record,
    answer_of,
    check_record,
    identity,
    messages_of,
    readable,
    template_kwargs_of,
    tools_of,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
USER = {"role": "user", "content": "Weather?"}


def assistant(**keys: Any) -> dict[str, Any]:
    return {"role": "assistant", **keys}


def pair(chosen: Any, rejected: Any) -> Record:
    answers = tuple(answer_of(messages_of([side], "x")) for side in (chosen, rejected))
    return check_record(Record((USER,), answers, (True, False)), ("chosen", "rejected"))


def test_every_key_of_a_message_is_kept_and_nulls_are_not() -> None:
    given = [assistant(tool_calls=[CALL], name=None, reasoning_content="Look."), {"role": "tool", "content": "rain"}]
    assert messages_of(given, "x") == (
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Look."},
        {"role": "tool", "content": "rain"},
    )
    parts = [{"type": "text", "text": "a"}]
    assert messages_of([{"role": "user", "content": parts}], "x")[0]["content"] == parts


def test_answers_of_tool_calls_and_reasoning_are_answers() -> None:
    record = pair(assistant(content=None, tool_calls=[CALL]), assistant(content="It rains."))
    assert record.completions[1] == "It rains."
    pair(assistant(content="4", reasoning_content="a"), assistant(content="4", reasoning_content="b"))
    with pytest.raises(BadRowError, match="`chosen` and `rejected` are identical"):
        pair(assistant(content="4", thinking=None), assistant(content="4"))
    with pytest.raises(BadRowError, match="`chosen` is empty"):
        pair(assistant(content="", tool_calls=[]), assistant(content="4"))
    with pytest.raises(BadRowError, match="roles out of order: `chosen` begins with the tool"):
        pair({"role": "tool", "content": "4"}, assistant(content="4"))


def test_equal_messages_are_one_whatever_the_order_of_their_keys() -> None:
    one, other = ({"role": "user", "content": "a", "name": "b"}, {"name": "b", "content": "a", "role": "user"})
    assert identity((one,)) == identity((other,)) != identity((USER,))
    assert identity("a") != identity((one,))
    assert "Bern" in readable((USER, assistant(content=None, tool_calls=[CALL])))
    assert readable((USER,)) == "Weather?"


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (assistant(), r"`x\[0\]` has no `content`"),
        (assistant(content=None), r"`x\[0\].content` is null"),
        ({"role": "user", "content": None, "tool_calls": [CALL]}, r"`x\[0\].content` is null"),
        (assistant(content=3), r"`x\[0\].content` is a number"),
        (assistant(content=[{"type": "image_url", "image_url": "u"}]), r"`x\[0\].content\[0\]` is 'image_url'; only"),
        (assistant(content="a", name="\ud800"), r"`x\[0\].name` holds a lone surrogate"),
        (assistant(content="a", extra={"\ud800": 1}), r"`x\[0\].extra key` holds a lone surrogate"),
        (assistant(content="a", **{"\ud800": 1}), r"`x\[0\] key` holds a lone surrogate"),
        (assistant(content="a", extra=nested(80)), "nested deeper than 64 levels"),
        (assistant(content="a", extra={"k": b"x"}), r"`x\[0\].extra.k` is a bytes"),
    ],
)
def test_what_no_template_can_write_is_named(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRowError, match=problem):
        messages_of([message], "x")


@pytest.mark.parametrize(
    ("prompt", "answer", "problem"),
    [((), "x", "`prompt` is empty"), (" ", "x", "`prompt` is empty"), ("x", (), "`response` is empty; a completion")],
)
def test_no_message_at_all_is_as_empty_as_no_text(prompt: Any, answer: Any, problem: str) -> None:
    with pytest.raises(BadRowError, match=problem):
        check_record(Record(prompt, (answer,), (True,)), ("response",))


def test_tools_and_arguments_are_read_as_objects_or_as_json_text() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert tools_of([tool]) == tools_of('[{"type": "function", "function": {"name": "f"}}]') == (tool,)
    assert tools_of(['{"type": "function", "function": {"name": "f"}}']) == (tool,)
    assert tools_of(None) is tools_of("") is tools_of("null") is None
    assert tools_of([]) == ()
    assert template_kwargs_of('{"enable_thinking": false}') == {"enable_thinking": False}
    assert template_kwargs_of(None) == {}
    for value, problem in (
        ("{", "no JSON"),
        ({"a": 1}, "a list of tools is needed"),
        ([3], "an object that describes"),
    ):
        with pytest.raises(BadRowError, match=problem):
            tools_of(value)
    with pytest.raises(BadRowError, match="an object is needed"):
        template_kwargs_of([1])
