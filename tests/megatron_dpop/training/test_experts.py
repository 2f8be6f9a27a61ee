"""Mixtures of experts train like plain transformers and autograd, however experts and all else are cut."""

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_convert.models import save_small
from tests.distributed import run_ranks
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import write_config, write_pairs, write_tokenizer
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
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_pairs(folder / "pairs.jsonl", 11)
    for family in FAMILIES:
        save_small(family, folder / family)
        write_tokenizer(folder / family)
    return folder


def _tree(world: Path, family: str, run: str, *, share: bool = True, **parallel: object) -> dict:
    return write_config(
        world,
        world / family,
        parallel=parallel,
        data={"share_prefix": share},
        train={"steps": 2},
        run={"dir": str(world / f"{run}_{family}_{share}")},
    )


def _check(metrics: list[dict], expected: list[dict[str, float]], case: str) -> None:
    assert len(metrics) == len(expected)
    assert metrics[0]["reference/drift"] == 0.0
    for step, reference in zip(metrics, expected, strict=True):
        for name, value in reference.items():
            if not name.startswith("source/"):
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (case, name, step["step"])


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    return {family: reference_run(_tree(world, family, "")) for family in FAMILIES}


def test_one_rank_trains_like_plain_transformers(world: Path, expected: dict[str, list[dict[str, float]]]) -> None:
    cases = [(family, share) for family in FAMILIES for share in (True, False)]
    trees = [_tree(world, family, "one", share=share) for family, share in cases]
    for (family, share), metrics in zip(cases, run_ranks(train_all, 1, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family}, sharing {share}")
        loaded = {name for name in metrics[0] if name.startswith("moe/load_balance/")}
        assert loaded == {f"moe/load_balance/{layer}" for layer in ((1, 3) if "between" in family else range(4))}
        assert metrics[0]["moe/load_balance"] == max(metrics[0][name] for name in loaded) > 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_like_plain_transformers(
    layout: str, world: Path, expected: dict[str, list[dict[str, float]]]
) -> None:
    ranks, parallel = LAYOUTS[layout]
    families = FAMILIES if ranks == 2 else FAMILIES[1:3]  # dense layers between, and a shared expert
    trees = [_tree(world, family, layout, **parallel) for family in families]
    for family, metrics in zip(families, run_ranks(train_all, ranks, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family} at {layout}")
