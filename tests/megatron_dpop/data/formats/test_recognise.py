"""Each format users have, from its real columns to prompt and completions."""

from typing import Any

import pytest

from megatron_dpop.data.formats import Layout, Notes, RowFields, recognise
from megatron_dpop.data.formats.ranked import grouped
from megatron_dpop.data.kinds import as_kind, can_be
from megatron_dpop.data.records import BadRowError, Record

USER = {"role": "user", "content": "Q"}
SYSTEM = {"role": "system", "content": "S"}


def read(*rows: dict[str, Any], notes: Notes | None = None, **columns: str) -> tuple[Layout, list[Record]]:
    """The layout of a file of these rows, and their records."""
    layout = recognise(rows, columns)
    roles = {column: role for role, column in layout.columns.items()}
    by_role = [("", {roles[name]: value for name, value in row.items() if name in roles}) for row in rows]
    entries = grouped(by_role) if layout.form.grouped else by_role
    found = [layout.form.records(RowFields(values, layout.columns), notes or Notes()) for _, values in entries]
    return layout, [record for records in found for record in records]


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(prompt: Any, chosen: str = "a", rejected: str = "b") -> list[Record]:
    return [Record(prompt, (chosen, rejected), (True, False))]


PAIRS: list[tuple[str, dict[str, Any], list[Record]]] = [
    ("TRL explicit plain", {"prompt": "Q", "chosen": "a", "rejected": "b"}, pair("Q")),
    (
        "TRL explicit conversational",
        {"prompt": [USER], "chosen": [says("a")], "rejected": [says("b")]},
        pair((USER,)),
    ),
    (
        "TRL implicit conversational",
        {"chosen": [USER, says("a")], "rejected": [USER, says("b")]},
        pair((USER,)),
    ),
    (
        "multi-turn",
        {"chosen": [SYSTEM, USER, says("x"), USER, says("a")], "rejected": [SYSTEM, USER, says("x"), USER, says("b")]},
        pair((SYSTEM, USER, says("x"), USER)),
    ),
    (
        "UltraFeedback-binarized",
        {
            "prompt": "Q",
            "prompt_id": "1",
            "chosen": [USER, says("a")],
            "rejected": [USER, says("b")],
            "messages": [USER, says("a")],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        pair((USER,)),
    ),
    (
        "Intel/orca_dpo_pairs",
        {"system": "S", "question": "Q", "chosen": "a", "rejected": "b"},
        pair((SYSTEM, USER)),
    ),
    ("orca_dpo_pairs, no system", {"system": "", "question": "Q", "chosen": "a", "rejected": "b"}, pair("Q")),
    (
        "Truthy-DPO",
        {"id": "1", "source": "x", "system": "S", "prompt": "Q", "chosen": "a", "rejected": "b"},
        pair((SYSTEM, USER)),
    ),
    (
        "Anthropic HH",
        {
            "chosen": "\n\nHuman: Q\n\nAssistant: x\n\nHuman: Q\n\nAssistant: a",
            "rejected": "\n\nHuman: Q\n\nAssistant: x\n\nHuman: Q\n\nAssistant: b",
        },
        pair((USER, says("x"), USER)),
    ),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in PAIRS], ids=[case[0] for case in PAIRS])
def test_pairs(row: dict[str, Any], expected: list[Record]) -> None:
    layout, records = read(row)
    assert layout.form.kind == "pair"
    assert records == expected


def test_implicit_plain_prompt_is_cut_as_trl_cuts_it() -> None:
    from trl.data_utils import extract_prompt

    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    _, (record,) = read(row)
    theirs = extract_prompt(row)
    assert record.prompt == theirs["prompt"]
    assert record.completions == (theirs["chosen"], theirs["rejected"])
    assert record.plain_only


RANKED: list[dict[str, Any]] = [
    {"prompt": "Q", "responses": ["b", "m", "a"], "scores": [1.0, 2.0, 3.0]},
    {"prompt": "Q", "completions": ["b", "m", "a"], "ranks": [3, 2, 1]},
    {
        "source": "x",
        "instruction": "Q",
        "models": [],
        "completions": [{"response": text, "overall_score": score} for text, score in (("b", 1), ("m", 2.5), ("a", 9))],
    },
    {"prompt": "Q", "answers": [{"answer": text, "rank": rank} for text, rank in (("b", 7), ("m", 2), ("a", 1))]},
]


@pytest.mark.parametrize("row", RANKED, ids=["scores", "ranks", "UltraFeedback", "Nectar"])
def test_ranked_completions(row: dict[str, Any]) -> None:
    layout, (record,) = read(row)
    assert layout.form.kind == "ranked"
    assert as_kind(record, "pair") == pair("Q")
    assert as_kind(record, "single") == [Record("Q", ("a",), (True,)), Record("Q", ("b",), (False,))]
    (group,) = as_kind(record, "group")
    assert isinstance(group, Record)
    assert dict(zip(group.completions, group.preferred, strict=True)) == {"a": True, "m": False, "b": False}
    assert as_kind(record, "sft") == [Record("Q", ("a",), (True,))]


def test_ties_and_repeats_among_ranked() -> None:
    row = {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 1]}
    _, (record,) = read(row)
    assert as_kind(record, "pair") == "all completions are rated the same"
    row = {"prompt": "Q", "responses": ["a", "a"], "scores": [1, 2]}
    _, (record,) = read(row)
    assert as_kind(record, "pair") == "only one completion"


def test_kto_labels() -> None:
    for value, label in ((True, True), (0, False), ("True", True)):
        row = {"prompt": "Q", "completion": "a", "label": value}
        assert read(row)[1] == [Record("Q", ("a",), (label,))]
    row = {"prompt": [USER], "completion": [says("a")], "label": False}
    assert read(row)[1] == [Record((USER,), ("a",), (False,))]
    assert as_kind(Record("Q", ("a",), (False,)), "sft") == "labelled as rejected"
    assert not can_be("single", "pair")


DEMONSTRATIONS: list[tuple[str, dict[str, Any], list[Record]]] = [
    (
        "MetaMath",
        {"type": "t", "query": "Q", "original_question": "Q", "response": "a"},
        [Record("Q", ("a",), (True,))],
    ),
    (
        "messages",
        {"messages": [SYSTEM, USER, says("a"), USER, says("b")]},
        [Record((SYSTEM, USER), ("a",), (True,)), Record((SYSTEM, USER, says("a"), USER), ("b",), (True,))],
    ),
    (
        "ShareGPT",
        {"id": "1", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a"}]},
        [Record((USER,), ("a",), (True,))],
    ),
    (
        "Orca-chat",
        {"instruction": "S", "conversation": [{"input": "Q", "output": "a"}], "cluster": {}},
        [Record((SYSTEM, USER), ("a",), (True,))],
    ),
    (
        "OpenOrca",
        {"id": "1", "system_prompt": "S", "question": "Q", "response": "a"},
        [Record((SYSTEM, USER), ("a",), (True,))],
    ),
    ("Alpaca", {"instruction": "Q", "input": "more", "output": "a"}, [Record("Q\n\nmore", ("a",), (True,))]),
    ("prompt and completion", {"prompt": "Q", "completion": "a"}, [Record("Q", ("a",), (True,))]),
]


@pytest.mark.parametrize(
    ("row", "expected"), [case[1:] for case in DEMONSTRATIONS], ids=[case[0] for case in DEMONSTRATIONS]
)
def test_demonstrations(row: dict[str, Any], expected: list[Record]) -> None:
    layout, records = read(row)
    assert layout.form.kind == "sft"
    assert records == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Q", "chosen": "a"}, "missing `rejected`"),
    ({"text": "Q"}, "columns `text` are no known format"),
    ({"prompt": "Q", "chosen": "a", "rejected": None}, "`rejected` is null; a string is needed"),
    ({"prompt": 3, "chosen": "a", "rejected": "b"}, "`prompt` is a number"),
    ({"prompt": "Q", "chosen": " \n", "rejected": "b"}, "`chosen` is empty"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "`prompt` is empty"),
    ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "`chosen` and `rejected` are identical"),
    ({"prompt": "Q", "chosen": "a\ud800", "rejected": "b"}, "`chosen` holds a lone surrogate at character 1"),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, "`prompt` is an empty list"),
    ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, r"`prompt\[0\]` has no `content`"),
    ({"prompt": [{"role": "boss", "content": "x"}], "chosen": "a", "rejected": "b"}, r"`prompt\[0\].role` is 'boss'"),
    ({"prompt": [USER, SYSTEM], "chosen": "a", "rejected": "b"}, "ends with the system"),
    ({"prompt": [USER, says("x")], "chosen": "a", "rejected": "b"}, "ends with the assistant"),
    ({"chosen": [USER, says("a")], "rejected": [says("b")]}, "`chosen` is a whole conversation and `rejected` an"),
    ({"chosen": [USER, says("a"), USER, says("x")], "rejected": [USER, says("a")]}, "`chosen` only goes on where"),
    ({"chosen": [USER, says("a"), USER, says("x")], "rejected": [USER, says("a"), SYSTEM, says("x")]}, "part at a"),
    ({"chosen": [says("a")], "rejected": [says("b")]}, "share no prompt"),
    ({"prompt": "Q", "responses": ["a", "b"], "scores": [1]}, "`responses` has 2 entries and `scores` 1"),
    ({"prompt": "Q", "responses": ["a", "b"], "scores": [1, "many"]}, r"`scores\[1\]` is 'many'"),
    ({"prompt": "Q", "responses": ["a", "b"], "scores": [1, float("inf")]}, r"`scores\[1\]` is 'inf'"),
    ({"prompt": "Q", "responses": [], "scores": []}, "`responses` is an empty list"),
    ({"prompt": "Q", "completion": "a", "label": "maybe"}, "`label` is 'maybe'"),
    ({"messages": [says("a")]}, "begins with the assistant"),
    ({"messages": [USER]}, "no assistant message"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "`conversations.0..from` is 'alien'"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        read(row)
