"""Every layout trains like plain transformers and autograd: losses, gradient norms, log-probabilities."""

from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import model_and_pairs, write_config
from tests.training import train_all

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_pairs(tmp_path_factory.mktemp("layouts"), 11)


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    return {name: reference_run(_tree(world, "", loss=name)) for name in ("dpop", "dpo", "ipo")}


def _tree(world: Path, run: str, *, loss: str = "dpop", share: bool = True, **parallel: object) -> dict:
    tree = write_config(
        world,
        world / "model",
        parallel=parallel,
        data={"share_prefix": share},
        run={"dir": str(world / f"run_{run}_{loss}_{share}")},
    )
    tree["loss"] = {"name": loss, "beta": 0.3} | ({"lambda": 5.0} if loss == "dpop" else {})
    return tree


LAYOUTS = {
    "tp1": ({}, 1),
    "tp2": ({"tensor": 2, "sequence": False}, 2),
    "tp2_sequence": ({"tensor": 2, "sequence": True}, 2),
    "pp2": ({"pipeline": 2}, 2),
    "dp2": ({}, 2),
    "cp2": ({"context": 2}, 2),
    "pp2_interleaved": ({"pipeline": 2, "virtual_pipeline": 2}, 2),
    "tp2_pp2": ({"tensor": 2, "pipeline": 2}, 4),
}


# Loss and gradients of a first step meet every layout in test_gradients.py.
@pytest.mark.parametrize(
    "layout",
    [name if name in ("tp1", "cp2") else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS],
)
def test_layout_trains_like_the_plain_reference(
    layout: str, world: Path, expected: dict[str, list[dict[str, float]]]
) -> None:
    parallel, ranks = LAYOUTS[layout]
    trees = [_tree(world, layout, share=share, **parallel) for share in (True, False)]
    if layout == "tp2_sequence":
        trees += [_tree(world, layout, loss=loss, **parallel) for loss in ("dpo", "ipo")]
    for tree, metrics in zip(trees, run_ranks(train_all, ranks, trees)[0], strict=True):
        wanted = expected[tree["loss"]["name"]]
        assert len(metrics) == len(wanted)
        for step, reference in zip(metrics, wanted, strict=True):
            for name, value in reference.items():
                if name.startswith("source/"):  # metrics of their own have sources of which there are several
                    continue
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (layout, name, step["step"])
        assert metrics[0]["reference/drift"] == 0.0
