"""The harness really runs: a tiny run on the offline task, and the leaderboard's tasks on made-up data."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from megatron_dpop.commands.main import run
from megatron_dpop.data.inspection.report import prompt_hash
from megatron_dpop.evaluation.problems import held_out_problems
from megatron_dpop.evaluation.results import LEADERBOARD_METRICS
from tests.tiny import write_config, write_model

pytestmark = pytest.mark.slow

ROWS: dict[str, dict[str, Any]] = {
    "allenai/ai2_arc": {"question": "w1?", "choices": {"text": ["w1", "w2"], "label": ["A", "B"]}, "answerKey": "B"},
    "Rowan/hellaswag": {
        "ctx_a": "w1", "ctx_b": "w2", "activity_label": "w3", "endings": ["w4", "w5", "w6", "w7"], "label": "1"
    },
    "cais/mmlu": {"question": "w1", "choices": ["w1", "w2", "w3", "w4"], "answer": 1},
    "truthfulqa/truthful_qa": {
        "question": "w1",
        "mc1_targets": {"choices": ["w1", "w2"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["w1", "w2"], "labels": [1, 0]},
    },
    "allenai/winogrande": {"sentence": "w1 _ w2", "option1": "w3", "option2": "w4", "answer": "1"},
    "openai/gsm8k": {"question": "w1", "answer": "w2 #### 5"},
}  # fmt: skip
MMLU_FIELDS = ("humanities", "other", "social_sciences", "stem")
SHOTS = {"arc_challenge": 25, "hellaswag": 10, "mmlu_astronomy": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    folder = tmp_path / "run"
    write_model(folder / "hf", max_position_embeddings=1024)
    tree = write_config(tmp_path, folder / "hf")
    question, _ = held_out_problems()[1]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": question, "chosen": "w1", "rejected": "w2"}) + "\n")
    tree["data"]["train"] = [{"path": str(pairs)}]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_offline_task_asks_with_the_chat_template_and_keeps_scores_in_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(run_folder), "--tasks", "gsm_symbolic", "--limit", "3", "--samples"]) == 0
    found = json.loads((run_folder / "eval" / "gsm_symbolic.json").read_text())
    scores = found["scores"]["gsm_symbolic"]
    assert (scores["shots"], scores["problems"], scores["of"]) == (0, 3, 500)
    assert {"exact_match", "marked"} == scores["metrics"].keys()
    assert found["problems_in_training"] == 1
    assert "1 of these problems are in the run's training data" in capsys.readouterr().out
    samples = [
        json.loads(line) for line in (run_folder / "eval" / "gsm_symbolic.samples.jsonl").read_text().splitlines()
    ]
    assert [sample["prompt"] for sample in samples] == [
        f"<user> {question} <end> <assistant> " for question, _ in held_out_problems()[:3]
    ]
    assert scores["metrics"]["exact_match"]["value"] == sum(sample["exact_match"] for sample in samples) / 3
    assert len({prompt_hash(sample["problem"]["question"]) for sample in samples}) == 3


def test_two_models_stand_side_by_side_and_their_time_is_foretold(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model(tmp_path / "base", seed=3, max_position_embeddings=1024)
    words = ["eval", str(base), str(run_folder), "--tasks", "gsm_symbolic", "--limit", "3"]
    assert run([*words, "--output", str(tmp_path / "scores")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("3 answers of at most 320 tokens, 8 at once") == 2
    table = captured.out.split("gsm_symbolic.json\n")[-1]
    assert "base" in table
    assert "run" in table
    for name in ("base", "run"):
        found = json.loads((tmp_path / "scores" / name / "gsm_symbolic.json").read_text())
        assert found["dtype"] in ("float32", "bfloat16")
        score = found["scores"]["gsm_symbolic"]["metrics"]["marked"]
        assert f"{score['value']:.4f} ± {score['stderr']:.4f}" in table


def test_unknown_task_names_the_nearest(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(run_folder), "--tasks", "gsm_symbolc"]) == 2
    assert "did you mean gsm_symbolic?" in capsys.readouterr().err


def test_data_out_of_reach_are_one_line_before_the_model_is_loaded(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (run_folder / "hf" / "model.safetensors").write_bytes(b"not a model")
    assert run(["eval", str(run_folder), "--tasks", "arc_challenge"]) == 2
    assert "--tasks arc_challenge: its data cannot be read" in capsys.readouterr().err


def test_leaderboard_asks_six_tasks_with_its_shots(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are made up, in the real ones' columns: the hub cannot be reached from a test."""

    def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        rows = [{**ROWS[path], "number": at} for at in range(30)]
        return datasets.DatasetDict(
            {s: datasets.Dataset.from_list(rows) for s in ("train", "validation", "test", "dev")}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    words = ["eval", str(run_folder), "--tasks", "open_llm_leaderboard", "--limit", "1", "--samples"]
    assert run(words) == 0
    found = json.loads((run_folder / "eval" / "open_llm_leaderboard.json").read_text())
    scores = found["scores"]
    assert not found["chat_template"]
    assert {task: scores[task]["shots"] for task in SHOTS} == SHOTS
    subjects = [task for task in scores if task.startswith("mmlu_") and task.removeprefix("mmlu_") not in MMLU_FIELDS]
    assert len(subjects) == 57
    assert {scores[task]["shots"] for task in subjects} == {5}
    reported = [scores[task]["metrics"][metric]["value"] for task, metric in LEADERBOARD_METRICS.items()]
    assert len(reported) == 6
    assert found["average"] == pytest.approx(sum(reported) / 6)
    samples = (json.loads(line) for line in (run_folder / "eval" / "open_llm_leaderboard.samples.jsonl").open())
    prompts = {sample["task"]: sample["prompt"] for sample in samples}
    for task, mark in (("arc_challenge", "Question:"), ("mmlu_astronomy", "Answer:"), ("gsm8k", "Question:")):
        assert prompts[task].count(mark) == SHOTS[task] + 1
