"""The share of tokens with the reference's experts is that of plain transformers, at every layout; what is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.megatron_dpop.training.reference_run import read_pairs
from tests.tiny import write_config, write_pairs
from tests.training import run_here

pytestmark = pytest.mark.slow

FAMILIES = {"qwen3-moe-dense-between": (1, 3), "mixtral": (0, 1, 2, 3)}  # and their layers with experts
PAIRS = 11
NAME = "moe/route_agreement"
LAYOUTS = {
    "dp2": (2, {}),
    "cp2_ep2": (2, {"context": 2, "expert": 2}),
    "pp2_interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "tp2_pp2_ep2": (4, {"tensor": 2, "pipeline": 2, "expert": 2}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routes")
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return save_chat_models(FAMILIES, folder)


def _tree(world: Path, family: str, run: str, **sections: dict) -> dict:
    given = {"data": {"validation": str(world / "pairs.jsonl")}, "checkpoint": {"export_hf": True}}
    return write_config(
        world,
        world / family,
        optimizer={"lr": 0.02},
        run={"dir": str(world / f"{run}_{family}")},
        **{**given, **sections},
    )


def _chosen(folder: Path, tree: dict) -> np.ndarray:
    """By transformers: which experts the token gets that predicts each completion's middle one.

    [layers with experts, completions, experts of a token].
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for example in read_pairs(tree):
        for completion in example.completions:
            tokens = torch.tensor([example.prompt + completion])
            place = len(example.prompt) - 1 + len(completion) // 2
            with torch.no_grad():
                logits = model(tokens, output_router_logits=True).router_logits
            found.append([layer.reshape(tokens.shape[1], -1)[place].topk(2).indices.sort().values for layer in logits])
    return np.array([[layer.tolist() for layer in layers] for layers in found]).swapaxes(0, 1)


def test_agreement_is_plain_transformers(world: Path) -> None:
    for family, layers in FAMILIES.items():
        tree = _tree(world, family, "one")
        metrics = run_ranks(run_here, 1, tree)[0][0].metrics
        before, after = (_chosen(folder, tree) for folder in (world / family, Path(tree["run"]["dir"], "hf")))
        same = (before == after).all(-1)  # [layers, completions]
        assert 0 < same.mean() < 1, "training has moved some routes"
        assert metrics[0][NAME] == 1.0
        assert metrics[1][NAME] < 1.0
        last = {name.removeprefix("validation/"): value for name, value in metrics[-1].items() if NAME in name}
        assert last == {NAME: same.mean()} | {f"{NAME}/{layer}": same[at].mean() for at, layer in enumerate(layers)}


def test_agreement_does_not_depend_on_the_layout(world: Path) -> None:
    family = "qwen3-moe-dense-between"
    (one,) = run_ranks(run_here, 1, _tree(world, family, "whole"))[0]
    for name, (ranks, parallel) in LAYOUTS.items():
        (other,) = run_ranks(run_here, ranks, _tree(world, family, name, parallel=parallel))[0]
        for line, wanted in zip(other.metrics, one.metrics, strict=True):
            assert {k: v for k, v in line.items() if NAME in k} == {k: v for k, v in wanted.items() if NAME in k}, name


def tables_here(tree: dict, kept: Path) -> tuple[list[float], list[float], str]:
    """The agreement of a run's steps, of one that is given its reference, and what one says that gets no routes."""
    from megatron_dpop.training.reference import read_reference, write_reference

    def forget() -> None:
        write_reference(kept, read_reference(kept)._replace(routes=None))

    def run(name: str) -> dict:
        return {**tree, "run": {"dir": f"{tree['run']['dir']}_{name}"}, "reference": {"cache": str(kept.parent)}}

    first, again, without = run_here(run("first"), run("again"), forget, run("without"))
    shares = [[line.get(NAME, -1.0) for line in outcome.metrics] for outcome in (first, again, without)]
    assert shares[2] == [-1.0] * len(shares[2])
    return shares[0], shares[1], without.said


def test_routes_are_kept_with_the_reference(world: Path) -> None:
    tree = _tree(world, "mixtral", "kept", data={"validation": []}, checkpoint={"export_hf": False})
    [(first, again, said)] = run_ranks(tables_here, 1, tree, world / "cache" / "train.safetensors")
    assert first == again
    assert first[0] == 1.0
    assert "train.safetensors holds no routes: moe/route_agreement is not measured" in said
