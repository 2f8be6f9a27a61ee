"""Routers' own losses are means over pairs at every layout, by a transcription in float64; frozen ones do not move."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from dpop_base.architectures import read_architecture
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.parameters import stage_parameters
from megatron_dpop.report.catalogue import METRICS
from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.exhaustive import EXHAUSTIVE
from tests.megatron_dpop.training.adapters import shares_here
from tests.megatron_dpop.training.gathered import Part, parts_here
from tests.megatron_dpop.training.reference_run import completion_logps, example_loss, read_pairs
from tests.tiny import write_config, write_pairs
from tests.training import run_here, train_all

pytestmark = pytest.mark.slow

RELATIVE = 1e-5
PAIRS, BATCH = 11, 6
WEIGHTS = {"balance_loss": 2.0, "z_loss": 0.5}
FAMILIES = {"qwen3-moe-dense-between": (1, 3), "qwen2-moe": (0, 1, 2, 3)}  # and their layers with experts
FULL = {"train": {"recompute": "full"}}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"data": {"share_prefix": False}}, FULL],
    2: [
        {"parallel": {"tensor": 2, "expert": 2}},
        {"parallel": {"context": 2, "expert": 2}, **FULL},
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, **FULL},
        {"parallel": {"expert": 2}, "data": {"share_prefix": False}},
    ],
    4: [{"parallel": {"tensor": 2, "pipeline": 2, "expert": 2}, **FULL}, {"parallel": {"tensor": 2, "context": 2}}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router_losses")
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return save_chat_models(FAMILIES, folder)


def _tree(world: Path, family: str, run: str, **sections: dict) -> dict:
    given = {"experts": WEIGHTS, "run": {"dir": str(world / f"{run}_{family}")}}
    return write_config(world, world / family, **{**given, **sections})


def _transcribed(tree: dict) -> tuple[list[np.ndarray], dict[str, float]]:
    """By transformers and autograd, the routers' losses in float64: routers' gradients, and what step 0 logs."""
    model = AutoModelForCausalLM.from_pretrained(tree["model"]["path"], dtype=torch.float32)
    examples = read_pairs(tree)
    terms: dict[str, list[torch.Tensor]] = {"loss": [], "balance": [], "z": []}
    for at in np.random.default_rng((0, 0)).permutation(PAIRS)[:BATCH]:
        example = examples[at]
        logps = [completion_logps(model, example.prompt, completion) for completion in example.completions]
        base = [value.detach() for value in logps]
        terms["loss"].append(example_loss(tree["loss"], logps, base, example, torch.zeros(())))
        # A completion's last token is predicted, and goes through no layer.
        of_completions = [
            model(torch.tensor([example.prompt + ids[:-1]]), output_router_logits=True).router_logits
            for ids in example.completions
        ]
        for layer in zip(*of_completions, strict=True):
            logits = torch.cat([found.flatten(0, -2) for found in layer]).double()  # [tokens, experts]
            probabilities = logits.softmax(-1)
            chosen = torch.zeros_like(logits).scatter(1, probabilities.topk(2, dim=-1).indices, 1.0)
            loads = chosen.mean(0) / 2
            terms["balance"].append(logits.shape[1] * (loads * probabilities.mean(0)).sum())
            terms["z"].append(logits.logsumexp(-1).square().mean())
    sums = {name: torch.stack(values).sum() / BATCH for name, values in terms.items()}
    (sums["loss"] + WEIGHTS["balance_loss"] * sums["balance"] + WEIGHTS["z_loss"] * sums["z"]).backward()
    routers = [parameter for name, parameter in model.named_parameters() if name.endswith(".gate.weight")]
    layers = len(terms["z"]) / BATCH
    norm = torch.stack([parameter.grad.double().norm() for parameter in model.parameters()]).norm()
    logged = {
        "loss": sums["loss"].item(),
        "moe/balance_loss": sums["balance"].item() / layers,
        "moe/z_loss": sums["z"].item() / layers,
        "grad_norm": norm.item(),
    }
    return [parameter.grad.numpy() for parameter in routers], logged


def _check_names(written: set[str]) -> None:
    """Of metrics of experts the catalogue describes what runs write, and no other."""
    of_experts = {re.sub(r"/\d+$", "", name) for name in written if name.startswith("moe/")}
    assert of_experts == {metric.key for metric in METRICS if metric.key.startswith("moe/")}


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=EXHAUSTIVE)])
def test_losses_and_gradients_are_the_transcriptions_at_every_layout(ranks: int, world: Path) -> None:
    for family, layers in FAMILIES.items():
        gradients, logged = _transcribed(_tree(world, family, ""))
        trees = [_tree(world, family, f"{ranks}_{at}", **layout) for at, layout in enumerate(LAYOUTS[ranks])]
        for layout, metrics in zip(LAYOUTS[ranks], run_ranks(train_all, ranks, trees)[0], strict=True):
            assert {name: metrics[0][name] for name in logged} == pytest.approx(logged, rel=RELATIVE), (family, layout)
            _check_names({name for line in metrics for name in line})
        for tree in trees:
            tree["run"]["dir"] += "_gradients"
        by_rank: list[list[Part]] = run_ranks(parts_here, ranks, [(tree, None) for tree in trees])
        for at, layout in enumerate(LAYOUTS[ranks]):
            found = {name: value for parts in by_rank for name, value in parts[at].gradients.items()}
            for layer, wanted in zip(layers, gradients, strict=True):
                name = f"decoder.layers.{layer}.mlp.router.weight"
                atol = RELATIVE * np.abs(wanted).max()
                np.testing.assert_allclose(found[name], wanted, rtol=0, atol=atol, err_msg=f"{family} {layout} {name}")


def test_frozen_routers_stay_as_they_are(world: Path) -> None:
    """No gradient, no optimizer state, counted by the plan; the run goes on as the undisturbed one."""
    tree = _tree(
        world,
        "qwen2-moe",
        "frozen",
        experts={"freeze_router": True},
        train={"steps": 4},
        checkpoint={"every": 2, "export_hf": True},
    )
    again = {**tree, "run": {"dir": tree["run"]["dir"] + "_again"}}

    (whole,) = run_ranks(run_here, 1, tree)[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "qwen2-moe", _hf(tree)))
    kept = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert kept == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(4)}
    stored = FileSystemReader(Path(tree["run"]["dir"], "checkpoints", "iter_0000004")).read_metadata()
    assert [name for name in stored.state_dict_metadata if "router" in name] == ["decoder.layers.mlp.router.weight"]

    shutil.copytree(tree["run"]["dir"], again["run"]["dir"])
    shutil.rmtree(_hf(again))
    Path(again["run"]["dir"], "checkpoints", "latest_checkpointed_iteration.txt").write_text("2")
    (resumed,) = run_ranks(run_here, 1, again)[0]
    assert resumed.comparable() == whole.comparable()

    fresh = {**tree, "run": {"dir": tree["run"]["dir"] + "_fresh"}}
    [[share]] = run_ranks(shares_here, 1, [fresh])
    planned = stage_parameters(read_architecture(world / "qwen2-moe"), LayoutChoice(freeze_router=True), 0)
    assert share.optimized == planned.trainable(None)
    assert [name for name in share.with_gradient if "router" in name] == []


def _hf(tree: dict) -> Path:
    return Path(tree["run"]["dir"], "hf")
