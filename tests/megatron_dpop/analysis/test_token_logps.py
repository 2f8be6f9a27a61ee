"""Per-token log-probabilities are plain transformers', at every layout."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

LAYOUTS = {
    "tp1": ({}, 1),
    "tp2": ({"tensor": 2}, 2),
    "pp2": ({"pipeline": 2}, 2),
    "dp2": ({}, 2),
    "cp2": ({"context": 2}, 2),
    "pp2_interleaved": ({"pipeline": 2, "virtual_pipeline": 2}, 2),
}
NATS = 1e-4


def words(**parallel: int) -> list[str]:
    layout = [f"--parallel.{name}={size}" for name, size in parallel.items()]
    return ["--precision.params=fp32", "--data.row_tokens=128", "--train.global_batch_pairs=5", *layout]


def analyzed(subjects: list[Path], pairs: Path, reference: str | None, overrides: list[str]) -> list:
    """In this rank: for each model (name, [(chosen, rejected) of each pair]); and all as a dict."""
    from megatron_dpop.analysis.request import read_request
    from megatron_dpop.runtime import processes

    request = read_request(subjects, pairs, reference=reference, overrides=overrides, progress=False)
    device = processes.initialize(request.config.parallel, seed=0)
    from megatron_dpop.analysis.analyze import analyze

    analysis = analyze(request, device)
    leave_model_parallel()
    found = [(model.name, [dataclasses.astuple(pair) for pair in model.logps]) for model in analysis.models]
    return [found, analysis.as_dict()]


def by_transformers(folder: Path, pairs: Path) -> list[tuple[np.ndarray, ...]]:
    """(chosen, rejected) of each pair, one sequence at a time."""
    from transformers import AutoModelForCausalLM

    from megatron_dpop.data.load import DataSource, load_dataset

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    result = []
    for example in load_dataset([DataSource(pairs)], folder, max_tokens=64, progress=False, workers=1):
        sides = []
        for completion in example.completions:
            whole = torch.from_numpy(np.concatenate((example.prompt, completion)).astype(np.int64))
            with torch.no_grad():
                logps = model(whole[None]).logits[0].log_softmax(-1)
            start = len(example.prompt)
            sides.append(logps[start - 1 : -1].gather(1, whole[start:, None])[:, 0].numpy())
        result.append(tuple(sides))
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    write_model(folder / "base")
    write_model(folder / "tuned", seed=1)
    write_pairs(folder / "pairs.jsonl", 13)
    return folder


@pytest.mark.parametrize(
    "layout", [name if name in ("tp2", "cp2") else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_every_token_is_as_by_transformers(layout: str, world: Path) -> None:
    parallel, ranks = LAYOUTS[layout]
    arguments = ([world / "tuned"], world / "pairs.jsonl", str(world / "base"), words(**parallel))
    found, _ = run_ranks(analyzed, ranks, *arguments)[0]
    assert [name for name, _ in found] == ["reference", "tuned"]
    for (_, pairs), folder in zip(found, ("base", "tuned"), strict=True):
        for ours, theirs in zip(pairs, by_transformers(world / folder, world / "pairs.jsonl"), strict=True):
            for side, expected in zip(ours, theirs, strict=True):
                assert side.shape == expected.shape
                assert np.abs(side - expected).max() < NATS


def trained_and_analyzed(tree: dict, pairs: Path) -> list:
    metrics = train_here(tree)
    return [metrics, *analyzed([Path(tree["run"]["dir"])], pairs, None, [])]


def test_a_run_is_compared_with_its_reference_and_agrees_with_its_validation(world: Path) -> None:
    tree = write_config(
        world,
        world / "base",
        data={"validation": str(world / "pairs.jsonl")},
        train={"steps": 2},
    )
    metrics, found, summary = run_ranks(trained_and_analyzed, 1, tree, world / "pairs.jsonl")[0]
    assert summary["reference"] == "reference"
    assert [name for name, _ in found] == ["reference", "run"]
    last = metrics[-1]
    for side in ("chosen", "rejected"):
        completion = summary["models"][1][side]["completion"]["value"]
        assert completion == pytest.approx(last[f"validation/logps/{side}"], abs=NATS)
    moved = (
        summary["models"][1]["chosen"]["completion"]["value"] - summary["models"][0]["chosen"]["completion"]["value"]
    )
    assert moved == pytest.approx(last["validation/logps/chosen_minus_reference"], abs=NATS)
    assert summary["models"][0]["minus_reference"]["chosen"]["after"] == 0.0
