"""CHES is that of transformers' hidden states in float64, at every layout; a file of it filters pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_dpop.analysis.displacement import rank_correlation
from megatron_dpop.commands.main import run
from megatron_dpop.data.files.rows import Location
from megatron_dpop.data.inspection.scores import PairScore, read_pairs, read_scores, record_key, write_scores
from tests.commands import printed
from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_model, write_pairs

LAYOUTS = {
    "tp2": ({"tensor": 2}, 2),
    "pp2": ({"pipeline": 2}, 2),
    "cp2": ({"context": 2}, 2),
    "dp2": ({}, 2),
}
RELATIVE = 1e-5  # of the largest score
PAIRS = 13


def by_transformers(folder: Path, pairs: Path) -> np.ndarray:
    """float64 [pairs, 2], the paper's two scores: one sequence at a time, from the states that transformers gives."""
    from transformers import AutoModelForCausalLM

    from megatron_dpop.data.load import DataSource, load_dataset

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    scores = []
    for example in load_dataset([DataSource(pairs)], folder, max_tokens=64, progress=False, workers=1):
        sums = []
        for completion in example.completions:
            whole = torch.from_numpy(np.concatenate((example.prompt, completion)).astype(np.int64))
            with torch.no_grad():
                states = model(whole[None], output_hidden_states=True).hidden_states[-1][0]
            sums.append(states[len(example.prompt) - 1 : -1].sum(0))
        (chosen, rejected), (w, l) = sums, map(len, example.completions)  # noqa: E741
        scores.append([(chosen @ rejected - chosen @ chosen).item(), (chosen / w @ (rejected / l - chosen / w)).item()])
    return np.array(scores)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("displacement")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture(scope="module")
def expected(world: Path) -> np.ndarray:
    return by_transformers(world / "model", world / "pairs.jsonl")


def scored(world: Path, overrides: list[str]) -> list[tuple[float, float]]:
    """In this rank: both scores of each pair."""
    from megatron_dpop.analysis.scored_pairs import read_score_request, score_pairs
    from megatron_dpop.data.templates import PromptFormat
    from megatron_dpop.data.tokenizer import load_tokenizer
    from megatron_dpop.runtime import processes

    file = str(world / "pairs.jsonl")
    request = read_score_request(str(world / "model"), file, max_tokens=64, overrides=overrides)
    device = processes.initialize(request.config.parallel, seed=0)
    tokenizer = load_tokenizer(request.tokenizer, PromptFormat())
    found = score_pairs(request, Location(file), {}, tokenizer, device)
    leave_model_parallel()
    return [(score.ches, score.ches_per_token) for score in found.scores]


@pytest.mark.parametrize("layout", ["tp2", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LAYOUTS)[1:])])
def test_scores_are_those_of_transformers(layout: str, world: Path, expected: np.ndarray) -> None:
    parallel, ranks = LAYOUTS[layout]
    words = [f"--parallel.{name}={size}" for name, size in parallel.items()]
    options = ["--precision.params=fp32", "--data.row_tokens=128", "--train.global_batch_pairs=5", *words]
    found = np.array(run_ranks(scored, ranks, world, options)[-1])
    assert found.shape == (PAIRS, 2)
    assert (np.abs(found - expected) / np.abs(expected).max(axis=0)).max() < RELATIVE


@pytest.mark.slow
def test_the_command_writes_scores(world: Path, expected: np.ndarray, tmp_path: Path) -> None:
    pairs, scores = world / "pairs.jsonl", tmp_path / "scores.jsonl"
    options = ["--model", world / "model", "--scores", scores, "--json", "--precision.params", "fp32"]
    report = json.loads(printed("data", "inspect", pairs, *options, "--parallel.tensor", "2"))
    for name, values in zip(("ches", "ches_per_token"), expected.T, strict=True):
        assert report["ches"][name]["p50"] == pytest.approx(float(np.median(values)), rel=RELATIVE)
        written = [json.loads(line)[name] for line in scores.read_text().splitlines()]
        assert written == pytest.approx(values.tolist(), rel=1e-4)
    assert list(read_scores(scores)) == [
        record_key(pair) for _, pair in read_pairs(Location(str(pairs)), {}, plain=False)
    ]


def test_scores_filter_the_rows(
    world: Path, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, scores, near = world / "pairs.jsonl", tmp_path / "scores.jsonl", tmp_path / "near.jsonl"
    keyed = read_pairs(Location(str(pairs)), {}, plain=False)
    write_scores(
        scores,
        (
            PairScore(where, record_key(pair).hex(), ches, per_token, 1, 1)
            for (where, pair), (ches, per_token) in zip(keyed, expected.tolist(), strict=True)
        ),
    )
    limit = float(np.median(expected[:, 1]))
    words = ["data", "filter", str(pairs), "--scores", str(scores), "--output", str(near)]
    assert run([*words, "--ches-below", str(limit)]) == 0
    rows = pairs.read_text().splitlines()
    kept = [json.loads(row) for row, (_, score) in zip(rows, expected, strict=True) if score < limit]
    assert [json.loads(line) for line in near.read_text().splitlines()] == kept
    first = tmp_path / "first.jsonl"
    first.write_text("".join(scores.read_text().splitlines(keepends=True)[:1]))
    assert run([*words[:3], "--scores", str(first), "--where", "ches < 1e9", "--output", str(near)]) == 0
    assert f"left out {PAIRS - 1}: has no score" in capsys.readouterr().err


def test_bad_words_are_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, output = str(world / "pairs.jsonl"), ["--output", str(tmp_path / "near.jsonl")]
    for words, said in (
        (["filter", pairs, "--ches-below", "1", *output], "needs --scores"),
        (["filter", pairs, "--ches-below", "1", "--scores", pairs, *output], "line 1 is no pair's scores"),
        (["filter", pairs, *output], "no condition is given"),
        (["inspect", pairs, "--scores", str(tmp_path / "scores.jsonl")], "no effect without --model"),
        (["inspect", pairs, "--smaples", "3"], "--smaples has no effect"),
        (["inspect", pairs, "--model", str(world / "model"), "--parallel.tensor", "3"], "parallel.tensor: 3"),
    ):
        assert run(["data", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1, error


def test_equal_values_share_their_rank() -> None:
    left, right = np.array([1.0, 2.0, 2.0, 4.0]), np.array([8.0, 4.0, 4.0, 1.0])
    assert rank_correlation(left, right) == pytest.approx(-1.0)
    assert rank_correlation(left, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(
        0.9486833
    )  # by scipy.stats.spearmanr
    assert np.isnan(rank_correlation(left, np.ones(4)))
