"""Shapes that publishers use for pairs, verdicts, ratings and labels, and what cannot be told."""

import re
from typing import Any

import pytest
import yaml

from megatron_dpop.data.formats import Notes
from megatron_dpop.data.formats.layout import recognise
from megatron_dpop.data.kinds import as_kind
from megatron_dpop.data.records import BadRowError

from .test_recognise import USER, read, says

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALL_TURN = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}
HUMAN = {"from": "human", "value": "Q"}

# row -> (prompt, better, worse)
PAIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "capybara-dpo": (
        {"conversation": [{"input": "Q", "output": "x"}], "prompt": "Q", "chosen": [USER, says("a")]}
        | {"rejected": [USER, says("b")]},
        (USER,),
    ),
    "distilabel": ({"system": "", "input": "Q", "chosen": "a", "rejected": "b", "generations": ["a", "b"]}, "Q"),
    "ShareGPT pair": (
        {
            "conversations": [HUMAN, CALL_TURN, {"from": "observation", "value": "7"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        (USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "7"}),
    ),
    "ms-swift messages": ({"messages": [USER, says("a")], "rejected_messages": [USER, says("b")]}, (USER,)),
    "ms-swift query": (
        {"query": "Q", "response": "a", "rejected_response": "b", "history": [["h", "i"]]},
        ({"role": "user", "content": "h"}, says("i"), USER),
    ),
    "HelpSteer3": ({"context": [USER], "response1": "b", "response2": "a", "overall_preference": 2}, (USER,)),
    "HelpSteer2-preference": (
        {"prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": -1},
        "Q",
    ),
    "Nectar": (
        {
            "prompt": "\n\nHuman: Q\n\nAssistant: x\n\nHuman: Q\n\nAssistant: ",
            "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}],
        },
        (USER, says("x"), USER),
    ),
    "a transcript as the prompt": ({"prompt": "Human: Q\n\nAssistant:", "chosen": " a", "rejected": " b"}, (USER,)),
    "Vicuna": ({"prompt": "USER: Q ASSISTANT:", "chosen": "a", "rejected": "b"}, (USER,)),
    "a transcript in one line": ({"prompt": "Human: Q Assistant:", "chosen": "a", "rejected": "b"}, (USER,)),
    "a transcript in one line that repeats itself": (
        {"prompt": "User: Q Assistant:", "chosen": "User: Q Assistant: a", "rejected": "User: Q Assistant: b"},
        (USER,),
    ),
    "a transcript that repeats itself": (
        {"prompt": "\n\nHuman: Q\n\nAssistant:"}
        | {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"},
        (USER,),
    ),
    "SHP": ({"history": "Q", "human_ref_A": "b", "human_ref_B": "a", "labels": 0}, "Q"),
    "Chatbot Arena": (
        {"winner": "model_b", "conversation_a": [USER, says("b")], "conversation_b": [USER, says("a")]},
        (USER,),
    ),
    "a letter": ({"question": "Q", "response_a": "b", "response_b": "a", "chosen": "B"}, "Q"),
    "a column's name": ({"prompt": "Q", "answer_a": "a", "answer_b": "b", "preferred": "Answer A"}, "Q"),
    "AlpacaFarm": ({"instruction": "Q", "input": "i", "output_1": "b", "output_2": "a", "preference": 2}, "Q\n\ni"),
    "Stack Exchange": ({"question": "Q", "response_j": "a", "response_k": "b"}, "Q"),
    "JSON in a table of text": (
        {"prompt": "Q", "chosen": '[{"role": "assistant", "content": "a"}]', "rejected": "b"},
        "Q",
    ),
    "NeMo-RL": (
        {"context": [USER]}
        | {"completions": [{"rank": 1, "completion": [says("b")]}, {"rank": 0, "completion": [says("a")]}]},
        (USER,),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    row, prompt = PAIRS[name]
    _, (record,) = read(row)
    (pair,) = as_kind(record, "pair")
    assert not isinstance(pair, str)
    assert (pair.prompt, pair.completions, pair.preferred) == (prompt, ("a", "b"), (True, False))


def test_a_chosen_answer_beside_lettered_ones_is_no_verdict() -> None:
    better, worse = "the answer is forty-two, as was to be shown", "the answer is not known to me, sorry to say"
    lettered = {"response_a": worse, "response_b": better}
    _, (record,) = read({"prompt": "Q", **lettered, "chosen": better, "rejected": worse})
    assert record.completions == (better, worse)


def test_rated_rows_of_a_conversation_in_nemo_marks() -> None:
    prompt = "Q\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nQ"
    _, (record,) = read(
        {"prompt": prompt, "response": "a", "helpfulness": 4}, {"prompt": prompt, "response": "b", "helpfulness": 1}
    )
    assert record.prompt == (USER, says("x"), USER)
    assert record.scores == (4.0, 1.0)


def test_an_answer_can_be_a_call_and_bare_tools_are_wrapped() -> None:
    described = '[{"name": "f", "description": "d", "parameters": {}}]'
    row = {"conversations": [HUMAN], "chosen": CALL_TURN, "rejected": {"from": "gpt", "value": "b"}, "tools": described}
    _, (record,) = read(row)
    assert record.completions == (({"role": "assistant", "content": "", "tool_calls": [CALL]},), "b")
    assert record.tools == (
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}},
    )  # fmt: skip


def test_parts_of_reasoning_calls_and_text() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "text", "value": "a"},
        {"type": "tool_call", "value": CALL_TURN["value"]},
    ]
    user = {"role": "user", "content": [{"type": "text", "value": "Q"}]}
    _, (record,) = read({"messages": [user, {"role": "assistant", "content": parts}]})
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [CALL]}
    assert (record.prompt, record.completions) == ((USER,), ((answer,),))


def test_sft_never_imitates_what_is_labelled_false() -> None:
    for row in (
        {"messages": [USER, says("a")], "label": False},
        {"prompt": "Q", "response": "a", "label": 0},
        {"completion": [USER, says("a")], "label": "undesirable"},
        {"conversations": [HUMAN, {"from": "gpt", "value": "a"}], "kto_tag": False},
    ):
        _, (record,) = read(row)
        assert as_kind(record, "single") == [record]
        assert as_kind(record, "sft") == "labelled as rejected"
    notes = Notes()
    turns = [USER, {**says("a"), "loss": False}, USER, {**says("b"), "loss": True}]
    _, (record,) = read({"messages": turns}, notes=notes)
    assert len(record.prompt) == 3
    assert notes.left_out.total() == 1


def test_ties_and_what_has_no_rating_are_left_out_and_counted() -> None:
    notes = Notes()
    read({"context": [USER], "response1": "a", "response2": "b", "overall_preference": 0}, notes=notes)
    read({"prompt": "Q", "responses": ["a", "b"], "scores": [None, None]}, notes=notes)
    read({"prompt": "Q", "completion": "a", "label": None}, notes=notes)
    assert list(notes.left_out.values()) == [1, 2, 1]
    _, (record,) = read({"instruction": "Q", "generations": ["a", "b", "c"], "ratings": ["5", "N/A", 1]})
    assert record.completions == ("a", "c")


def test_plain_text_keeps_transcripts() -> None:
    row = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    _, (record,) = read(row, notes=Notes(plain=True))
    assert (record.prompt, record.completions) == ("\n\nHuman: Q\n\nAssistant:", (" a", " b"))


UNCLEAR: dict[str, tuple[dict[str, Any], str]] = {
    "two prompts": (
        {"prompt": "Q", "question": "R", "chosen": "a", "rejected": "b"},
        "both `prompt` and `question` could be the prompt; say which one is: columns: {prompt: prompt} or columns: "
        "{prompt: question}",
    ),
    "a question about a text": (
        {"context": "P", "question": "Q", "chosen": "a", "rejected": "b"},
        "both `question` and `context` could be the prompt",
    ),
    "two verdicts": (
        {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        "columns: {verdict: better_response_id} or columns: {verdict: safer_response_id}",
    ),
    "two demonstrations": (
        {"problem": "Q", "solution": "z", "messages": [USER, says("a")]},
        "two readings are possible: columns: {messages: messages} or columns: {completion: solution}",
    ),
    "two systems": (
        {"system": "S", "system_prompt": "T", "prompt": "Q", "chosen": "a", "rejected": "b"},
        "both `system` and `system_prompt` could be the system",
    ),
    "no known names": (
        {"user_query": "Q", "response_preferred": "a", "response_dispreferred": "b"},
        "did you mean columns: {prompt: user_query, chosen: response_preferred, rejected: response_dispreferred}?",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_cannot_be_told_is_asked(name: str) -> None:
    row, message = UNCLEAR[name]
    with pytest.raises(BadRowError, match=re.escape(message)):
        read(row)


def test_a_mapping_settles_it() -> None:
    _, (record,) = read(UNCLEAR["two prompts"][0], prompt="question")
    assert record.prompt == "R"
    _, (record,) = read(UNCLEAR["two verdicts"][0], verdict="safer_response_id")
    assert record.completions == ("a", "b")
    _, (record,) = read(UNCLEAR["two demonstrations"][0], completion="solution")
    assert record.completions == ("z",)


def test_two_names_of_the_same_are_no_matter() -> None:
    layout, (record,) = read({"problem": "Q", "solution": "a", "messages": [USER, says("a")]})
    assert layout.form.name == "chat messages"
    assert record.completions == ("a",)


SIDES = {"Ask": "Q", "Reply (agent)": "a", "Reply (bot)": "b"}
NAMED = {"prompt": "Ask", "first": "Reply (agent)", "second": "Reply (bot)", "verdict": "Better?"}


@pytest.mark.parametrize(
    ("told", "order"),
    [("agent", "ab"), ("Bot", "ba"), (1, "ab"), ("2", "ba"), ("second", "ba"), ("reply (bot)", "ba"), ("A", "ab")],
)
def test_a_verdict_by_the_readers_own_name_speaks_for_itself(told: Any, order: str) -> None:
    _, (record,) = read({**SIDES, "Better?": told}, **NAMED)
    assert "".join(record.completions) == order


def test_a_word_of_a_columns_name_goes_before_its_place() -> None:
    given = {"prompt": "Q", "first": "Answer B", "second": "Answer A", "verdict": "best"}
    _, (record,) = read({"Q": "Q", "Answer B": "b", "Answer A": "a", "best": "A"}, **given)
    assert record.completions == ("a", "b")


@pytest.mark.parametrize("told", [0, -1, 3, "maybe", "reply"])
def test_a_verdict_that_could_be_either_is_refused(told: Any) -> None:
    """By HelpSteer's signs 1 and 2 would both be the second answer; what 0 is, nobody has said."""
    with pytest.raises(BadRowError, match="write which answer is better: 1 or 2"):
        read({**SIDES, "Better?": told}, **NAMED)


def test_two_replies_and_a_choice_are_guessed_as_such() -> None:
    sample = [{"Nr": at, **SIDES, "Better?": word} for at, word in enumerate(("agent", "bot", "agent"))]
    with pytest.raises(BadRowError, match=re.escape("did you mean columns: {")) as caught:
        recognise(sample)
    given = yaml.safe_load(str(caught.value).partition("columns: {")[2].removesuffix("}?").join("{}"))
    assert given == NAMED, "the guess can be copied into a config"


@pytest.mark.parametrize(
    "beside",
    [
        {"model_a": "gpt-4", "model_b": "llama", "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        {"score_a": 3, "score_b": 4},
    ],
)
def test_of_several_answers_none_is_guessed_to_be_the_completion(beside: dict[str, Any]) -> None:
    with pytest.raises(BadRowError, match="no known format") as caught:
        read({"id": 0, "prompt": "Q", "response_a": "a", "response_b": "b", **beside})
    assert "completion" not in str(caught.value).partition("did you mean")[2]


def test_a_dialogue_with_answers_is_guessed_as_such() -> None:
    row = {"talk": [{"who": "x", "said": "Q"}], "dialog": "Q", "candidates": [{"text": "a", "rating": 5}]}
    with pytest.raises(
        BadRowError, match=re.escape("did you mean columns: {prompt: dialog, completions: candidates}?")
    ):
        read(row)
    with pytest.raises(BadRowError, match=re.escape("`talk[0]` has no `role` but `who`, `said`; a turn is {role, co")):
        read(row, prompt="talk", completions="candidates")
    turn = {"speaker": "User", "text": "Q"}
    _, (record,) = read(
        {"dialog": [turn], "candidates": [{"text": "a", "rating": 5}]}, prompt="dialog", completions="candidates"
    )
    assert record.prompt == ({"role": "user", "content": "Q"},)


def test_answers_with_a_score_of_an_unknown_name_say_which_are_known() -> None:
    with pytest.raises(BadRowError, match=r"each of `candidates` has `text`, `stars`; it needs .* `rating`"):
        read({"question": "Q", "candidates": [{"text": "a", "stars": 5}, {"text": "b", "stars": 1}]})
