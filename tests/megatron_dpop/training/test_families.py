"""Families whose layers are more than Llama's train like plain transformers and autograd, prefixes shared or not.

The pairs are longer than the windows, so that branches see a part of their trunk in some layers and all in others.
"""

from pathlib import Path
from typing import Any

import pytest

from checkpoint_convert.megatron_to_peft import megatron_to_peft
from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.megatron_dpop.training.adapters import save_start
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import write_config, write_pairs
from tests.training import train_all, train_here

pytestmark = pytest.mark.slow

RELATIVE = 1e-4
FAST = ("gemma3", "smollm3-window")
FAMILIES = (*FAST, "glm4", "granite", "phi3", "phi4-mini", "ernie4.5", "seed-oss", "qwen2-late-window", "qwen2-yarn")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2_sequence": {"parallel": {"tensor": 2}},
    "pp2": {"parallel": {"pipeline": 2}},
    "cp2": {"parallel": {"context": 2}},
    "pp2_recompute": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "train": {"recompute": "full"}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_pairs(folder / "pairs.jsonl", 11)
    return folder


def _tree(world: Path, family: str, run: str, *, share: bool = True, **sections: Any) -> dict:
    if not (world / family).exists():
        save_chat_models([family], world)
    train = {"steps": 2, **sections.pop("train", {})}
    name = f"{run}_{family}_{share}"
    data = {"share_prefix": share}
    return write_config(world, world / family, data=data, train=train, run={"dir": str(world / name)}, **sections)


def _check(metrics: list[dict], expected: list[dict[str, float]], case: str) -> None:
    assert len(metrics) == len(expected)
    assert metrics[0]["reference/drift"] == 0.0
    for step, reference in zip(metrics, expected, strict=True):
        for name, value in reference.items():
            if not name.startswith("source/"):
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (case, name, step["step"])


def test_one_rank_trains_like_plain_transformers(world: Path) -> None:
    cases = [(family, share) for family in FAST for share in (True, False)]
    trees = [_tree(world, family, "one", share=share) for family, share in cases]
    expected = {family: reference_run(_tree(world, family, "")) for family in FAST}
    for (family, share), metrics in zip(cases, run_ranks(train_all, 1, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family}, sharing {share}")


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    return {family: reference_run(_tree(world, family, "")) for family in FAMILIES}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_family_at_two_ranks(layout: str, world: Path, expected: dict[str, list[dict[str, float]]]) -> None:
    trees = [_tree(world, family, layout, **LAYOUTS[layout]) for family in FAMILIES]
    for family, metrics in zip(FAMILIES, run_ranks(train_all, 2, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family} at {layout}")


@pytest.mark.parametrize("family", ["phi3", "gemma3"])
def test_adapters_train_like_peft(family: str, world: Path) -> None:
    """Phi-3's fused linears are one module each of PEFT's; Gemma's norms stand after what the adapters add."""
    lora = {"rank": 4, "alpha": 8}
    start = _tree(world, family, "start", lora=lora)
    run_ranks(save_start, 1, start)
    megatron_to_peft(Path(start["run"]["dir"], "checkpoints"), world / f"{family}_adapter", progress=False)
    tree = _tree(world, family, "lora", lora=lora)
    _check(run_ranks(train_here, 1, tree)[0], reference_run(tree, adapter=world / f"{family}_adapter"), family)
