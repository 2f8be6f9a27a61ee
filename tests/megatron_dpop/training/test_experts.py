"""Mixtures of experts train like plain transformers and autograd, however experts and all else are cut."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import write_config, write_pairs
from tests.training import train_all

RELATIVE = 1e-4
FAMILIES = ("qwen3-moe", "qwen3-moe-dense-between", "qwen2-moe", "mixtral")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "ep2": (2, {"expert": 2}),
    "tp2": (2, {"tensor": 2}),
    "tp2_ep2": (2, {"tensor": 2, "expert": 2}),
    "tp2_etp2": (2, {"tensor": 2, "expert_tensor": 2}),
    "cp2_ep2": (2, {"context": 2, "expert": 2}),
    "pp2_interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp4_ep2": (4, {"expert": 2}),
    "ep2_etp2": (4, {"expert": 2, "expert_tensor": 2}),
    "tp2_pp2_ep2": (4, {"tensor": 2, "pipeline": 2, "expert": 2}),
    "tp2_pp2_ep2_dp2": (8, {"tensor": 2, "pipeline": 2, "expert": 2}),
    "tp2_pp2_ep2_etp2": (8, {"tensor": 2, "pipeline": 2, "expert": 2, "expert_tensor": 2}),
}
STEPS, SAVED = 4, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_pairs(folder / "pairs.jsonl", 11)
    return save_chat_models(FAMILIES, folder)


def _tree(world: Path, family: str, run: str, *, share: bool = True, steps: int = 2, **parallel: object) -> dict:
    return write_config(
        world,
        world / family,
        parallel=parallel,
        data={"share_prefix": share},
        train={"steps": steps},
        checkpoint={"every": SAVED, "keep": 9},
        run={"dir": str(world / f"{run}_{family}_{share}")},
    )


def _check(metrics: list[dict], expected: list[dict[str, float]], case: str) -> None:
    assert len(metrics) == len(expected)
    assert metrics[0]["reference/drift"] == 0.0
    assert metrics[0]["moe/route_agreement"] == 1.0
    for step, reference in zip(metrics, expected, strict=True):
        for name, value in reference.items():
            if not name.startswith("source/"):
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (case, name, step["step"])


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    return {family: reference_run(_tree(world, family, "")) for family in FAMILIES}


@pytest.mark.slow
def test_one_rank_trains_like_plain_transformers(world: Path, expected: dict[str, list[dict[str, float]]]) -> None:
    cases = [(family, share) for family in FAMILIES for share in (True, False)]
    trees = [_tree(world, family, "one", share=share) for family, share in cases]
    for (family, share), metrics in zip(cases, run_ranks(train_all, 1, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family}, sharing {share}")
        loaded = {name for name in metrics[0] if name.startswith("moe/load_balance/")}
        assert loaded == {f"moe/load_balance/{layer}" for layer in ((1, 3) if "between" in family else range(4))}
        assert metrics[0]["moe/load_balance"] == max(metrics[0][name] for name in loaded) > 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", in_ci("tp2_ep2", "cp2_ep2", "ep2_etp2", "tp2_pp2_ep2", of=LAYOUTS))
def test_every_layout_trains_like_plain_transformers(
    layout: str, world: Path, expected: dict[str, list[dict[str, float]]]
) -> None:
    ranks, parallel = LAYOUTS[layout]
    # Dense layers between, and a shared expert.
    families = {2: FAMILIES, 4: FAMILIES[1:3], 8: FAMILIES[2:3] if "etp2" in layout else FAMILIES[1:2]}[ranks]
    trees = [_tree(world, family, layout, **parallel) for family in families]
    for family, metrics in zip(families, run_ranks(train_all, ranks, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family} at {layout}")


def starve(model: Path) -> None:
    """Every token goes to experts 0 and 1, in every layer: the others have none.

    The first entry of every token's hidden state is made large, and routers look at its sign.
    """
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 8.0
    for name, tensor in tensors.items():
        if name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight")):
            tensor[:, 0] = torch.tensor([3.0, 3.0] + [-3.0] * (len(tensor) - 2))
        if name.endswith("post_attention_layernorm.weight"):
            tensor[0] = 1.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("layout", in_ci("ep2_etp2", of=["tp2_ep2", "tp2_etp2", "ep2_etp2"]))
def test_experts_without_a_token_are_no_trouble(layout: str, world: Path) -> None:
    for family in ("qwen2-moe", "mixtral"):
        starved = f"{family}-starved"
        if not (world / starved).exists():
            shutil.copytree(world / family, world / starved)
            starve(world / starved)
    ranks, parallel = LAYOUTS[layout]
    trees = [_tree(world, f"{family}-starved", layout, **parallel) for family in ("qwen2-moe", "mixtral")]
    for tree, metrics in zip(trees, run_ranks(train_all, ranks, trees)[0], strict=True):
        assert all(metrics[0][f"moe/load_balance/{layer}"] == 3.0 for layer in range(4)), "two of six have all"
        _check(metrics, reference_run(tree), f"{tree['model']['path']} at {layout}")


@pytest.mark.slow
@pytest.mark.parametrize("family", in_ci("qwen2-moe", of=["qwen3-moe-dense-between", "qwen2-moe"]))
def test_a_run_goes_on_at_other_expert_layouts(family: str, world: Path) -> None:
    tree = _tree(world, family, "moving", steps=STEPS, expert=2)
    expected = run_ranks(train_all, 2, [tree])[0][0]
    others = {name: LAYOUTS[name] for name in ("tp2_etp2", "cp2_ep2", "tp2_pp2_ep2")} | {"one": (1, {})}
    for name, (ranks, parallel) in others.items():
        moved = _tree(world, family, f"moved_to_{name}", steps=STEPS, **parallel)
        run = Path(moved["run"]["dir"])
        shutil.copytree(tree["run"]["dir"], run)
        (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
        found = run_ranks(train_all, ranks, [moved])[0][0]
        assert [line["step"] for line in found] == list(range(STEPS))
        for line, wanted in zip(found[SAVED:], expected[SAVED:], strict=True):
            for metric in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
                assert line[metric] == pytest.approx(wanted[metric], rel=1e-5), (name, line["step"], metric)
