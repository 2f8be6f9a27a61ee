"""MetaMath, ARC and HellaSwag from files with those datasets' real columns."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run
from megatron_dpop.data.makers.make import hold_out, make_pairs
from megatron_dpop.data.makers.pairs_file import Pair

LETTERS = "ABCDE"


def arc_row(index: int, choices: int = 4) -> dict[str, Any]:
    texts = [f"choice {index}.{place}" for place in range(choices)]
    labels = list(LETTERS[:choices]) if index % 5 else [str(place + 1) for place in range(choices)]
    return {
        "id": f"Mercury_{index}",
        "question": f"Which of these is number {index}?",
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[index % choices],
    }


def hellaswag_row(index: int) -> dict[str, Any]:
    return {
        "ind": index,
        "activity_label": "Roof shingle removal",
        "ctx_a": f"Man {index} is sitting on a roof.",
        "ctx_b": "he",
        "ctx": f"Man {index} is sitting on a roof. he",
        "endings": [f"is doing thing {index}.{place}. [step] then rests." for place in range(4)],
        "source_id": f"activitynet~v_{index}",
        "split": "train",
        "split_type": "indomain",
        "label": str(index % 4),
    }


def metamath_row(index: int) -> dict[str, Any]:
    price, count = index + 3, index % 7 + 2
    return {
        "type": "GSM_Rephrased",
        "query": f"Pens cost ${price} and she buys {count} and pays 5 more. What does she pay?",
        "original_question": "same",
        "response": f"She pays {count} * ${price} = ${count * price}.\nWith 5 more that is {count * price} + 5 = "
        f"${count * price + 5}.\n#### {count * price + 5}\nThe answer is: {count * price + 5}",
    }


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)
    return str(path)


def made(folder: Path, split: str) -> list[dict[str, str]]:
    return pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl", "folder"])
def test_arc_gives_three_pairs_a_question(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, [arc_row(index) for index in range(40)])
    sheet = make_pairs("arc", tmp_path / "out", source=source, progress=False)
    assert sheet["pairs"] == {"train": 120, "validation": 0}
    assert not (tmp_path / "out" / "validation.parquet").exists()
    rows = made(tmp_path / "out", "train")
    assert rows[3] == {
        "prompt": "Which of these is number 1?",
        "chosen": "choice 1.1",
        "rejected": "choice 1.0",
    }
    assert {row["rejected"] for row in rows[:3]} == {"choice 0.1", "choice 0.2", "choice 0.3"}


def test_arc_counts_follow_the_rule_at_the_published_sizes(tmp_path: Path) -> None:
    """ARC-Challenge's 1,119 training questions: 1,117 with four choices, one with three, one with five: 3,357."""
    rows = [arc_row(index) for index in range(1117)] + [arc_row(1117, 3), arc_row(1118, 5)]
    sheet = make_pairs("arc", tmp_path / "out", source=write(tmp_path / "arc.parquet", rows), progress=False)
    assert sheet["pairs"]["train"] == 3357


def test_arc_in_its_original_json_lines(tmp_path: Path) -> None:
    choices = [{"text": f"c{place}", "label": LETTERS[place]} for place in range(4)]
    row = {"id": "1", "question": {"stem": "Which?", "choices": choices}, "answerKey": "C"}
    source = write(tmp_path / "arc.jsonl", [row, {**row, "answerKey": "Z", "id": "2"}])
    sheet = make_pairs("arc", tmp_path / "out", source=source, progress=False)
    assert [(row["chosen"], row["rejected"]) for row in made(tmp_path / "out", "train")] == [
        ("c2", "c0"),
        ("c2", "c1"),
        ("c2", "c3"),
    ]
    assert sheet["skipped"] == {"no choice has the answer's label": 1}


def test_hellaswag_with_its_two_splits(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [hellaswag_row(index) for index in range(30)])
    held = write(tmp_path / "val.jsonl", [hellaswag_row(index) for index in range(25, 40)])
    sheet = make_pairs("hellaswag", tmp_path / "out", source=train, validation_source=held, progress=False)
    assert sheet["pairs"] == {"train": 90, "validation": 30}
    assert sheet["skipped"] == {"validation prompt that is in the training split": 15}
    first = made(tmp_path / "out", "train")[0]
    assert first["prompt"] == "Roof shingle removal: Man 0 is sitting on a roof. he"
    assert first["chosen"] == "is doing thing 0.0. then rests."


@pytest.mark.parametrize("label", [{}, {"label": None}, {"label": ""}, {"label": -1}, {"label": "-1"}])
def test_hellaswag_skips_and_counts_rows_without_a_label(label: dict[str, Any], tmp_path: Path) -> None:
    unlabelled = {key: value for key, value in hellaswag_row(1).items() if key != "label"} | label
    source = write(tmp_path / "a.jsonl", [unlabelled, hellaswag_row(0), unlabelled])
    sheet = make_pairs("hellaswag", tmp_path / "out", source=str(source), progress=False)
    assert sheet["pairs"]["train"] == 3
    assert sheet["skipped"] == {"no label (test splits have none)": 2}


@pytest.mark.parametrize("key", [{}, {"answerKey": None}, {"answerKey": ""}])
def test_arc_skips_and_counts_rows_without_an_answer(key: dict[str, Any], tmp_path: Path) -> None:
    rows = [arc_row(index) for index in range(2)]
    rows[0] = {name: value for name, value in rows[0].items() if name != "answerKey"} | key
    sheet = make_pairs("arc", tmp_path / "out", source=str(write(tmp_path / "a.jsonl", rows)), progress=False)
    assert sheet["skipped"] == {"no label (test splits have none)": 1}
    assert sheet["pairs"]["train"] > 0


def test_hellaswag_test_split_has_no_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{**hellaswag_row(0), "label": ""}])
    with pytest.raises(UserError, match=r"no pair can be made of its 1 rows \(1 no label"):
        make_pairs("hellaswag", tmp_path / "out", source=source, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_metamath_in_one_process_and_in_two_is_the_same(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, [metamath_row(index) for index in range(4200)])
    for workers in (1, 2):
        make_pairs("metamath", tmp_path / str(workers), source=source, validation=100, workers=workers, progress=False)
    for split in ("train", "validation"):
        assert made(tmp_path / "1", split) == made(tmp_path / "2", split)
    train, held = made(tmp_path / "1", "train"), made(tmp_path / "1", "validation")
    assert len(held) == 100
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    sheet = json.loads((tmp_path / "1" / "datasheet.json").read_text())
    assert sheet["rows"]["train"] == 4200
    assert sheet["found_in"]["train"] == {"verified calculation": 4200}
    for row in train[:50]:
        assert row["chosen"].split("####")[1] == row["rejected"].split("####")[1]
        assert row["chosen"] != row["rejected"]


def test_gsm8k_annotations_are_left_out(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "He has 2+3=<<2+3=5>>5.\nThen 5*4=<<5*4=20>>20.\n#### 20"}
    make_pairs("metamath", tmp_path / "out", source=write(tmp_path / "a.jsonl", [row]), progress=False)
    (pair,) = made(tmp_path / "out", "train")
    assert pair["chosen"] == "He has 2+3=5.\nThen 5*4=20.\n#### 20"
    assert pair["rejected"].startswith("He has 2+3=")
    assert pair["rejected"].endswith(".\nThen 5*4=20.\n#### 20")


@pytest.mark.parametrize("count", [0, 3])
def test_few_shot_prompts_are_the_harness_own(count: int, tmp_path: Path) -> None:
    rows = [
        {"question": f"How many are {i} and {i}?", "answer": f"{i} + {i} = {2 * i}, and 0 + 1 = 1.\n#### 1"}
        for i in range(1, 40)
    ]
    source = write(tmp_path / "gsm8k.jsonl", rows)
    answers = {row["question"]: row["answer"] for row in rows}
    words = ["data", "make", "metamath", "--source", source, "--output", str(tmp_path / "pairs"), "--validation", "9"]
    assert run([*words, "--few-shot", str(count)]) == 0
    splits = {split: made(tmp_path / "pairs", split) for split in ("train", "validation")}
    own = {split: [_questions(pair["prompt"])[-1] for pair in pairs] for split, pairs in splits.items()}
    for pairs in splits.values():
        for pair in pairs:
            *shown, asked = pair["prompt"].split("\n\n")
            assert asked == f"Question: {_questions(asked)[0]}\nAnswer:"
            assert pair["chosen"] == answers[_questions(asked)[0]]
            assert len(shown) == count
            for example in shown:
                question = _questions(example)[0]
                assert example == f"Question: {question}\nAnswer: {answers[question]}"
                assert question in own["train"]
                assert question != _questions(asked)[0]
    assert json.loads((tmp_path / "pairs" / "datasheet.json").read_text())["few_shot"] == count
    assert run([*words, "--few-shot", "40"]) == 2


def _questions(prompt: str) -> list[str]:
    return re.findall(r"^Question: (.*)$", prompt, re.MULTILINE)


def test_few_shot_endings_go_on_with_the_text(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [hellaswag_row(index) for index in range(6)])
    make_pairs("hellaswag", tmp_path / "pairs", source=source, few_shot=1, progress=False)
    for pair in made(tmp_path / "pairs", "train"):
        shown, asked = pair["prompt"].split("\n\n")
        assert re.fullmatch(r"Roof shingle removal: Man \d is sitting on a roof. he", asked)
        assert re.fullmatch(
            r"Roof shingle removal: Man \d is sitting on a roof. he is doing thing \d.\d. then rests.", shown
        )


def test_hold_out_keeps_prompts_whole() -> None:
    pairs = [Pair(f"prompt {index // 3}", "right", f"wrong {index}") for index in range(60)]
    train, held = hold_out(pairs, 12, seed=1)
    assert (len(train), len(held)) == (48, 12)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held}
    assert hold_out(pairs, 12, seed=1) == (train, held)
    assert hold_out(pairs, 12, seed=2) != (train, held)
    with pytest.raises(UserError, match="cannot be held out"):
        hold_out(pairs, 61, seed=1)


@pytest.mark.parametrize(
    ("rule", "row", "message"),
    [
        ("arc", {"question": "q", "choices": ["a"], "answerKey": "A"}, "`choices` is a list"),
        ("arc", {"question": 3, "choices": {}, "answerKey": "A"}, "`question` is a number"),
        ("arc", {"question": "q", "choices": {"text": ["a"], "label": []}, "answerKey": "A"}, "1 texts and 0 labels"),
        ("hellaswag", {"ctx": "c", "endings": ["a"], "label": "7"}, "`label` is '7'"),
        ("hellaswag", {"endings": ["a"], "label": "0"}, "missing `ctx`"),
        ("metamath", {"query": "q", "response": None}, "`response` is null"),
    ],
)
def test_other_columns_are_named_with_their_row(tmp_path: Path, rule: str, row: dict, message: str) -> None:
    source = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        make_pairs(rule, tmp_path / "out", source=source, progress=False)
