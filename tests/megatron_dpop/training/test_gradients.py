"""The loss and every parameter's gradient are the same at every layout, with prefixes shared or not."""

from pathlib import Path

import numpy as np
import pytest

from tests.distributed import run_ranks
from tests.exhaustive import EXHAUSTIVE
from tests.megatron_dpop.training.gathered import Arrays, Part, gather, parts_here
from tests.tiny import write_config, write_model, write_pairs

RELATIVE = 1e-5
VOCABULARY = 101
MODELS = {"untied": False, "tied": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    for name, tied in MODELS.items():
        write_model(folder / name, num_key_value_heads=4, tie_word_embeddings=tied)
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


def _tree(world: Path, model: str, run: str, *, share: bool, **sections: object) -> dict:
    return write_config(
        world,
        world / model,
        data={"share_prefix": share, "row_tokens": 128},
        train={"global_batch_pairs": 12, **sections.pop("train", {})},
        run={"dir": str(world / f"{run}_{model}_{share}")},
        **sections,
    )


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, tuple[str, float, Arrays]]:
    """By model: the reference's file, and loss and gradient of one rank without sharing."""
    trees = [_tree(world, model, "expected", share=False) for model in MODELS]
    own = run_ranks(parts_here, 1, [(tree, None) for tree in trees])[0]
    assert own[0].logps is not None
    shifts = np.random.default_rng(0).normal(0, 1, own[0].logps.shape).astype(np.float32)
    # Some chosen answers have lost probability, some not: the penalty is active in a part of the pairs.
    assert (shifts[:, 0] > 0.05).any()
    assert (shifts[:, 0] < -0.05).any()
    tables = []
    for model, part in zip(MODELS, own, strict=True):
        assert part.logps is not None
        tables.append(str(world / f"{model}.npy"))
        np.save(tables[-1], part.logps + shifts)
    found = run_ranks(parts_here, 1, list(zip(trees, tables, strict=True)))[0]
    return {
        model: (table, part.loss, _gather([part], model))
        for model, table, part in zip(MODELS, tables, found, strict=True)
    }


def _gather(parts: list[Part], model: str) -> Arrays:
    return gather(parts, vocab_size=VOCABULARY, tied=MODELS[model])


# By number of ranks: what a layout says beyond the defaults, which are sequence parallelism, the distributed optimizer
# and no recomputation.
Layout = dict[str, dict[str, object]]
VIRTUAL = {"pipeline": 2, "virtual_pipeline": 2}
PLAIN = {"optimizer": {"distributed": False}}
LAYOUTS: dict[int, list[Layout]] = {
    1: [{}, {"train": {"recompute": "full"}}, {"train": {"recompute": "selective"}}],
    2: [
        {"parallel": {"tensor": 2, "sequence": False}},
        {"parallel": {"tensor": 2}},
        {"parallel": {"pipeline": 2}},
        {"parallel": {"pipeline": 2, "first_stage_layers": 1}},
        {"parallel": {"pipeline": 2, "last_stage_layers": 1}},
        {"parallel": VIRTUAL},
        {"parallel": {"context": 2}},
        {"parallel": {"context": 2}, "train": {"recompute": "full"}, **PLAIN},
        {},
        PLAIN,
        {"parallel": {"overlap": True}},
    ],
    4: [
        {"parallel": {"tensor": 4, "sequence": False}},
        {"parallel": {"tensor": 4}},
        {"parallel": {"tensor": 2, "pipeline": 2, "sequence": False}},
        {"parallel": {"tensor": 2, "pipeline": 2}},
        {"parallel": {"tensor": 2, **VIRTUAL}},
        {"parallel": {"tensor": 2, "context": 2}},
        {"parallel": {"tensor": 2}},
        {"parallel": {"pipeline": 2}},
        {"parallel": {"pipeline": 2, "context": 2}},
        {"parallel": {**VIRTUAL, "context": 2}, "train": {"recompute": "full"}},
        {"parallel": {**VIRTUAL, "overlap": True}},
        {"parallel": {"context": 2}, **PLAIN},
        {"parallel": {"context": 4}},
    ],
    8: [
        {"parallel": {"tensor": 4, "pipeline": 2, "sequence": False}},
        {"parallel": {"tensor": 4, "pipeline": 2}},
        {"parallel": {"tensor": 2, "pipeline": 2, "context": 2}},
        {"parallel": {"tensor": 2, **VIRTUAL, "context": 2}, "train": {"recompute": "full"}},
        {"parallel": {"tensor": 2, "pipeline": 2}},
        {"parallel": {"tensor": 2, **VIRTUAL}, **PLAIN},
        {"parallel": {"tensor": 2, "context": 2}},
        {"parallel": {"pipeline": 2, "context": 2}},
        {"parallel": {**VIRTUAL, "context": 2}},
    ],
}


@pytest.mark.parametrize(
    ("ranks", "models"),
    [
        pytest.param(1, [*MODELS], marks=pytest.mark.slow),
        (2, ["untied"]),
        pytest.param(2, ["tied"], marks=pytest.mark.slow),
        pytest.param(4, [*MODELS], marks=pytest.mark.slow),
        pytest.param(8, [*MODELS], marks=EXHAUSTIVE),
    ],
)
def test_loss_and_gradients_do_not_depend_on_the_layout(
    ranks: int, models: list[str], world: Path, expected: dict[str, tuple[str, float, Arrays]]
) -> None:
    cases = [
        (model, at, share)
        for model in models
        for at, layout in enumerate(LAYOUTS[ranks])
        for share in (True, False)
        # The plain layout without sharing is what the others are compared with; at more than two ranks what tied
        # embeddings add is their gradient's way between the first and the last stage.
        if ranks > 1 or layout or share
        if ranks <= 2 or model == "untied" or (share and "pipeline" in layout.get("parallel", {}))
    ]
    runs = [
        (_tree(world, model, f"{ranks}_{at}", share=share, **LAYOUTS[ranks][at]), expected[model][0])
        for model, at, share in cases
    ]
    by_rank: list[list[Part]] = run_ranks(parts_here, ranks, runs)
    for at, (model, layout, share) in enumerate(cases):
        case = f"{model}, {LAYOUTS[ranks][layout]}, sharing {share}"
        _, loss, gradients = expected[model]
        parts = [results[at] for results in by_rank]
        assert [part.loss for part in parts] == pytest.approx([loss] * ranks, rel=RELATIVE), case
        found = _gather(parts, model)
        assert found.keys() == gradients.keys()
        for name, wanted in gradients.items():
            largest = np.abs(wanted).max()
            assert largest > 0, name
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=RELATIVE * largest, err_msg=f"{case} {name}")
