"""The paper's experiments: their configs are good, and the pairs are of the two kinds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_dpop.config import load_config

PAPER = Path(__file__).parents[2] / "examples" / "paper"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"paper_{name}", PAPER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("config", ["smollm2", "mistral-7b"])
def test_every_experiment_has_a_good_config(config: str) -> None:
    groups = module("experiments").GROUPS
    experiments = {one for group in groups.values() for one in group}
    assert len({one.name for one in experiments}) == len(experiments)
    losses = set()
    for one in experiments:
        read = load_config(PAPER / f"{config}.yaml", one.overrides())
        losses.add(read.loss)
        assert read.train.seed == one.seed
    assert len(losses) == len({(one.loss, one.beta, one.penalty) for one in experiments})


def test_the_papers_values_are_all_there() -> None:
    groups = module("experiments").GROUPS
    assert [one.beta for one in groups["beta"]] == [0.1, 0.3, 1.0]
    assert [one.penalty for one in groups["lambda"]] == [None, 0.5, 5.0, 50.0]
    assert (
        {one.loss for one in groups["low-edit"]} == {one.loss for one in groups["high-edit"]} == {"dpo", "ipo", "dpop"}
    )
    for group, seeds in (("seeds", 6), ("constant", 3)):
        found = {(one.loss, one.seed) for one in groups[group]}
        assert found == {(loss, at) for loss in ("dpo", "dpop") for at in range(seeds)}


def test_pairs_of_low_and_of_high_edit_distance(tmp_path: Path) -> None:
    makers = module("pairs")
    makers.make_low_edit(tmp_path / "low", train=12, validation=3, seed=0)
    makers.make_high_edit(tmp_path / "high", train=12, validation=3, seed=0)
    sheets = {kind: json.loads((tmp_path / kind / "datasheet.json").read_text()) for kind in ("low", "high")}
    for sheet in sheets.values():
        assert sheet["pairs"] == {"train": 12, "validation": 3}
    distances = {kind: sheet["normalised_edit_distance"]["train"]["mean"] for kind, sheet in sheets.items()}
    assert distances["low"] < 0.1
    assert distances["high"] > 0.5
