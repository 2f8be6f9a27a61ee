"""Files of a file's rows: filtered by numbers, split without a prompt in common; through the commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run
from megatron_dpop.data.inspection.balance import length_bias
from megatron_dpop.data.inspection.numbers import normalised_hamming
from megatron_dpop.data.inspection.render import warnings
from megatron_dpop.data.inspection.report import inspect_file
from megatron_dpop.data.inspection.where import Condition, conditions_of


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ROWS = [
    row("a", "yes sir", "no", note={"by": "x"}),
    row("a", "no", "yes sir"),
    row("b", "maybe so", "maybe no"),
    row("b", "maybe so", "maybe no"),
    row("c", "", "never"),
    row("d", "yes sir", "no"),
]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["edit_distance < 0.2"], [2, 3]),
        (["hamming<=.125"], [2, 3]),
        (["edit_distance > 0.2 and contradicts == 0"], [5]),
        (["contradicts == 1"], [0, 1]),
        (["duplicate == 0"], [0, 1, 2, 5]),
        (["length_difference >= 0", "prompt_characters < 2"], [0, 2, 3, 5]),
        (["shared_prefix >= 0.75"], [2, 3]),
        (["rejected_characters != 2"], [1, 2, 3]),
    ],
)
def test_filter_keeps_rows_as_they_stand(where: list[str], kept: list[int], tmp_path: Path) -> None:
    words = [word for condition in where for word in ("--where", condition)]
    source = write(tmp_path / "a.jsonl", ROWS)
    assert run(["data", "filter", str(source), *words, "--output", str(tmp_path / "out" / "b.jsonl")]) == 0
    assert read(tmp_path / "out" / "b.jsonl") == [ROWS[index] for index in kept]


def test_filter_by_tokens(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    words = ["data", "filter", str(source), "--where", "chosen_tokens > rejected_tokens", "--output"]
    assert run([*words, str(tmp_path / "b.jsonl")]) == 2, "a number is needed"
    words[4] = "token_hamming < 0.5 and tokens < 100"
    assert run([*words, str(tmp_path / "b.jsonl")]) == 2
    assert "token_hamming needs --tokenizer" in capsys.readouterr().err
    assert run([*words, str(tmp_path / "b.jsonl"), "--tokenizer", str(llama)]) == 0
    assert read(tmp_path / "b.jsonl") == ROWS[2:4]
    assert "left out 1: `chosen` is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "edit_distance << 3"], "is no condition"),
        (["--where", "edit_distanc < 3"], "did you mean edit_distance?"),
        (["--where", "__import__('os') == 1"], "is no condition"),
        (["--where", "edit_distance > 5"], "no row fulfils edit_distance > 5; nothing was written"),
        (["--where", "edit_distance < 1", "--kind", "sft"], "edit_distance is a number of pairs"),
    ],
)
def test_what_is_no_condition_is_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    assert run(["data", "filter", str(source), *words, "--output", str(tmp_path / "b.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_conditions() -> None:
    assert conditions_of(["tokens <= 1e3 and hamming!=-.5"]) == [
        Condition("tokens", "<=", 1000.0),
        Condition("hamming", "!=", -0.5),
    ]
    with pytest.raises(UserError, match="join several with `and`"):
        conditions_of(["tokens < 3, tokens > 1"])


def test_split_shares_no_prompt_and_keeps_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"q{index % 40}", f"a{index}", f"b{index}") for index in range(100)]
    rows.append(row("q1", "", "b"))
    source = write(tmp_path / "a.jsonl", rows)
    parts = {}
    for seed, name in ((0, "x"), (0, "y"), (1, "z")):
        words = ["--output", str(tmp_path / name), "--fraction", "0.2", "--seed", str(seed)]
        assert run(["data", "split", str(source), *words]) == 0
        parts[name] = [read(tmp_path / name / f"{part}.jsonl") for part in ("train", "validation")]
    train, held = parts["x"]
    assert parts["x"] == parts["y"] != parts["z"]
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held)
    assert 17 <= len(held) <= 20
    assert sorted(row["chosen"] for row in train + held) == sorted(row["chosen"] for row in rows[:100])
    assert "left out 1: `chosen` is empty" in capsys.readouterr().err
    report = inspect_file(tmp_path / "x" / "train.jsonl", other=tmp_path / "x" / "validation.jsonl", progress=False)
    assert report.prompts_in_other == 0


def test_split_keeps_conversations_that_share_a_turn_together(tmp_path: Path) -> None:
    def talk(*words: str) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]}

    rows = [talk("hello", "hi", f"q{index}", "a") for index in range(5)] + [talk("bye", "so long")]
    source = write(tmp_path / "a.jsonl", rows)
    assert run(["data", "split", str(source), "--count", "3", "--output", str(tmp_path / "s")]) == 0
    assert read(tmp_path / "s" / "validation.jsonl") == rows[5:]
    assert run(["data", "split", str(write(tmp_path / "b.jsonl", rows[:5])), "--count", "2", "--output", "s"]) == 2


def test_inspection_counts_contradictions_and_what_length_alone_tells(tmp_path: Path) -> None:
    rows = [row(f"p{index}", "long answer " * (index % 4 + 1), "short") for index in range(30)]
    rows += [row(f"p{index}", "short", "tiny") for index in range(30, 40)]
    rows += [row("p3", "short", "long answer " * 4)]
    report = inspect_file(write(tmp_path / "a.jsonl", rows), progress=False)
    assert report.contradictory == 2
    assert report.length_bias["chosen_longer"] == 40
    assert report.length_bias["chosen_shorter"] == 1
    assert report.length_bias["accuracy"] == round(40 / 41, 5)
    said = "; ".join(warnings(report))
    assert "2 pairs contradict another one" in said
    assert "length alone tells the chosen answer in 98% of the pairs" in said
    assert report.hamming["mean"] >= report.edit_distance["mean"] > 0


def test_length_bias_and_hamming_by_hand() -> None:
    assert length_bias([3, 1, 2], [1, 3, 2]) == {
        "chosen_longer": 1,
        "chosen_shorter": 1,
        "equal": 1,
        "accuracy": 0.5,
        "auc": 0.5,
    }
    assert length_bias([5, 6], [1, 2])["auc"] == 1.0
    assert length_bias([1, 2], [5, 2])["auc"] == 0.125
    assert length_bias([], []) == {}
    assert normalised_hamming("abcd", "abXdef") == 3 / 6
    assert normalised_hamming([1, 2, 3], [1, 2, 3]) == 0
