"""Every kind of loss trains by its name in the config like plain transformers and autograd, at several layouts."""

import json
import random
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megatron_dpop.data.load import DataSource, load_dataset
from megatron_dpop.losses.registry import make_loss
from megatron_dpop.report.catalogue import METRICS
from megatron_dpop.training.kl import MismatchedDataset
from tests.distributed import run_ranks
from tests.megatron_dpop.training.reference_run import Example, reference_steps
from tests.tiny import WORDS, write_config, write_model, write_pairs
from tests.training import train_all

RELATIVE = 1e-4
LOSSES = {
    "sft": {"name": "sft"},
    "hinge": {"name": "hinge", "beta": 0.3},
    "cpo": {"name": "cpo", "beta": 0.3},
    "aft": {"name": "aft"},
    "kto": {"name": "kto", "beta": 0.3},
    "shift": {"name": "dpo_shift", "beta": 0.3, "lambda": 0.5, "lambda_end": 1.0},
    "sum": {
        "name": "sum",
        "terms": [
            {"name": "dpo", "weight": 0.7, "beta": 0.3, "nll_weight": 0.2},
            {"name": "simpo", "weight": 0.3, "beta": 2.0, "gamma": 1.0},
        ],
    },
    "weighted": {"name": "dpo", "beta": 0.3, "ld_alpha": 0.4},
    "blend": {"name": "dpop", "beta": 0.3, "lambda": 5.0},
}
# By layout of two ranks: losses, each with the capacity of its rows. KTO's KL term must depend on neither.
CASES = {
    "tensor": ({"tensor": 2}, [(name, 128) for name in LOSSES]),
    "data": ({}, [("kto", 64), ("aft", 128), ("blend", 64)]),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    write_model(folder / "model", num_hidden_layers=2)
    # Random text is less probable under this reference than under the policy: KTO's KL term is above zero.
    write_model(folder / "sharper", num_hidden_layers=2)
    weights = load_file(folder / "sharper" / "model.safetensors")
    weights["lm_head.weight"] *= 1.3
    save_file(weights, folder / "sharper" / "model.safetensors", metadata={"format": "pt"})
    write_pairs(folder / "pairs.jsonl", 7)
    write_pairs(folder / "others.jsonl", 4, seed=1)
    _write_groups(folder / "groups.jsonl", 7)
    return folder


def _write_groups(path: Path, count: int) -> None:
    """Three or four completions of each prompt, of which one or two are rated best."""
    draw = random.Random(2)
    lines = []
    for at in range(count):
        texts = [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(2, 8))) for _ in range(3 + at % 2)]
        scores = [1, 1, 0, -1] if at % 2 else [0, 1, 0]
        lines.append(json.dumps({"prompt": f"w{at} w7", "completions": texts, "scores": scores}))
    path.write_text("\n".join(lines) + "\n")


def _tree(world: Path, name: str, layout: dict, row_tokens: int) -> dict:
    files = {"aft": ["groups"], "blend": ["pairs", "others"]}.get(name, ["pairs"])
    tree = write_config(
        world,
        world / "model",
        parallel=layout,
        data={"train": [str(world / f"{file}.jsonl") for file in files], "row_tokens": row_tokens},
        reference={"model": str(world / "sharper") if name == "kto" else None},
        train={"steps": 2, "global_batch_pairs": 4},
        run={"dir": str(world / f"{name}_{layout.get('tensor', 1)}_{row_tokens}")},
    )
    tree["loss"] = LOSSES[name]
    if name == "weighted":
        tree["data"]["unscored"] = ["<end>", "w7"]
    return tree


def _expected(tree: dict) -> list[dict[str, float]]:
    files = [DataSource(Path(path)) for path in tree["data"]["train"]]
    kind = make_loss(tree["loss"]).kind
    dataset = load_dataset(files, Path(tree["model"]["path"]), max_tokens=64, kind=kind, workers=1, progress=False)

    def examples(of: object) -> list[Example]:
        return [
            Example(x.prompt.tolist(), [c.tolist() for c in x.completions], list(x.preferred), x.source)
            for x in (of[at] for at in range(len(dataset)))  # type: ignore[index]
        ]

    mismatched = examples(MismatchedDataset(dataset)) if kind == "single" else None
    return reference_steps(tree, examples(dataset), mismatched)


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    return {name: _expected(_tree(world, name, {}, 128)) for name in LOSSES}


def _check_names(written: set[str], *, is_every_loss: bool) -> None:
    """What runs write and what the catalogue describes, in the report and in docs/reference/metrics.md, are the same.

    Terms of a sum are named by the config, no CPU has a peak to compare with, and this model has no experts.
    """
    names = {re.sub(r"^source/\w+/", "", name) for name in written if not name.startswith("loss/")} - {"step"}
    known = {metric.key for metric in METRICS}
    assert names - known == set()
    if is_every_loss:
        assert {key for key in known - names if not key.startswith("moe/")} == {"perf/mfu"}


@pytest.mark.parametrize("layout", ["tensor", pytest.param("data", marks=pytest.mark.slow)])
def test_each_loss_trains_like_the_plain_reference(
    layout: str, world: Path, expected: dict[str, list[dict[str, float]]]
) -> None:
    assert all(step["kto/kl"] > 0.1 for step in expected["kto"])
    parallel, cases = CASES[layout]
    trees = [_tree(world, name, parallel, row_tokens) for name, row_tokens in cases]
    lines = run_ranks(train_all, 2, trees)[0]
    _check_names({name for metrics in lines for line in metrics for name in line}, is_every_loss=layout == "tensor")
    for (name, _), metrics in zip(cases, lines, strict=True):
        sources = set()
        for step, wanted in zip(metrics, expected[name], strict=True):
            sources |= {key.split("/")[1] for key in step if key.startswith("source/")}
            for key, value in wanted.items():
                if name == "blend" or not key.startswith("source/"):
                    assert step[key] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (name, key, step["step"])
        assert sources == ({"pairs", "others"} if name == "blend" else set())
