"""Every loss of the registry has the same value, metrics and gradient at every layout, on unevenly filled rows."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dpop_base.choices import ExampleKind
from megatron_dpop.losses.registry import REGISTRY, make_loss
from tests.distributed import run_ranks
from tests.megatron_dpop.training.gathered import Part, gather, losses_here
from tests.tiny import WORDS, write_config, write_model, write_pairs

pytestmark = pytest.mark.slow

RELATIVE = 1e-5
EXAMPLES = 7
# With their own defaults, and what several losses can be given besides.
SECTIONS = [
    *({"name": name} for name in REGISTRY),
    {"name": "dpo", "beta": 5.0, "average": "tokens"},
    {"name": "dpop", "beta": 5.0, "average": "tokens"},
    {"name": "apo_zero", "nll_weight": 0.2},
    {"name": "dpo_shift", "lambda": 0.5, "lambda_end": 1.0},
    {"name": "sum", "terms": [{"name": "dpop", "weight": 0.8, "nll_weight": 0.2}, {"name": "simpo", "weight": 0.2}]},
]
# Weights of tokens are in the rows, and so of a run's own.
WEIGHTED = {"name": "dpo", "ld_alpha": 0.4}
FILES: dict[ExampleKind, str] = {"pair": "pairs", "single": "pairs", "sft": "pairs", "group": "groups"}
LAYOUTS = {
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "data": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loss_layouts")
    write_model(folder / "model")
    write_model(folder / "sharper")  # random text is less probable under it: KTO's KL term is above zero
    weights = load_file(folder / "sharper" / "model.safetensors")
    weights["lm_head.weight"] *= 1.3
    save_file(weights, folder / "sharper" / "model.safetensors", metadata={"format": "pt"})
    write_pairs(folder / "pairs.jsonl", EXAMPLES)
    draw = random.Random(2)
    lines = []
    for at in range(EXAMPLES):
        texts = [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(2, 8))) for _ in range(3)]
        lines.append(json.dumps({"prompt": f"w{at} w7", "completions": texts, "scores": [1, at % 2, 0]}))
    (folder / "groups.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _groups(world: Path, name: str) -> list[tuple[dict, list[dict]]]:
    """By kind of examples: a config, and the losses that take such examples."""
    groups = []
    for kind, file in FILES.items():
        sections = [section for section in SECTIONS if make_loss(section).kind == kind]
        tree = write_config(
            world,
            world / "model",
            parallel=LAYOUTS.get(name, {}),
            data={"train": str(world / f"{file}.jsonl"), "row_tokens": 64},
            reference={"model": str(world / "sharper")},
            train={"global_batch_pairs": EXAMPLES},
            run={"dir": str(world / f"{name}_{kind}")},
        )
        tree["loss"] = sections[0]
        groups.append((tree, sections))
    tree, _ = groups[0]
    weighted = {
        "loss": WEIGHTED,
        "data": {**tree["data"], "unscored": ["<end>"]},
        "run": {"dir": str(world / f"{name}_weighted")},
    }
    return [*groups, ({**tree, **weighted}, [WEIGHTED])]


def _parts(world: Path, name: str, ranks: int) -> dict[str, list[Part]]:
    """By loss: every rank's part."""
    groups = _groups(world, name)
    by_rank = run_ranks(losses_here, ranks, groups)
    return {
        str(section): [results[group][at] for results in by_rank]
        for group, (_, sections) in enumerate(groups)
        for at, section in enumerate(sections)
    }


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[Part]]:
    return _parts(world, "alone", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_loss_is_the_same_at_every_layout(layout: str, world: Path, expected: dict[str, list[Part]]) -> None:
    found = _parts(world, layout, 2)
    assert found.keys() == expected.keys()
    for loss, parts in found.items():
        (alone,) = expected[loss]
        for part in parts:
            own = {name: value for name, value in part.values.items() if name in alone.values}
            assert own == pytest.approx(alone.values, rel=RELATIVE, abs=1e-5), loss
        gradients = gather(parts, vocab_size=101, tied=False)
        # This loss's slope changes its sign, so the examples' gradients nearly cancel in fp32.
        relative = 5 * RELATIVE if "discopop" in loss else RELATIVE
        for name, wanted in gather([alone], vocab_size=101, tied=False).items():
            largest = np.abs(wanted).max()
            assert largest > 0, (loss, name)
            np.testing.assert_allclose(
                gradients[name], wanted, rtol=0, atol=relative * largest, err_msg=f"{loss} {name}"
            )
