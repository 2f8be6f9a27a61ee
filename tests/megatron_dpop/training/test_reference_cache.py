"""A kept reference is used where it fits, warned about where only rounding differs, refused where it is wrong."""

import contextlib
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_dpop.training.reference_cache import meaning
from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference_cache")
    write_model(folder / "model")
    write_model(folder / "other", seed=1)
    write_pairs(folder / "pairs.jsonl", 6)
    return folder


def _tree(world: Path, run: str, *, model: str = "model", **data: object) -> dict:
    return write_config(
        world,
        world / model,
        data=data,
        reference={"cache": str(world / "cache")},
        run={"dir": str(world / run)},
    )


def said_here(trees: list[dict], age: Path | None = None) -> list[tuple[str, list[list[float]]]]:
    """What each config says while it gets its reference (or the error), and the reference.

    After the first, the reference kept at `age` is made to look as if older code had computed it.
    """
    first = _said(trees[0])
    if age is not None:
        from megatron_dpop.training.reference import read_reference, write_reference

        kept = read_reference(age)
        write_reference(age, kept._replace(key=replace(kept.key, code="older")))
    return [first, *(_said(tree) for tree in trees[1:])]


def _said(tree: dict) -> tuple[str, list[list[float]]]:
    from dpop_base.errors import UserError
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.config.schema import ParallelConfig
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(ParallelConfig(), seed=0)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.reference_cache import step_data
    from megatron_dpop.training.run import build_run

    said = io.StringIO()
    logps: list[list[float]] = []
    with contextlib.redirect_stderr(said):
        run = build_run(config, read_inputs(config, progress=False), device)
        try:
            reference = step_data(run)[0].reference
            assert reference is not None
            logps = reference.tolist()
        except UserError as error:
            said.write(str(error))
    leave_model_parallel()
    return said.getvalue(), logps


def test_kept_reference(world: Path) -> None:
    trees = [
        _tree(world, "first"),
        _tree(world, "second"),
        _tree(world, "unshared", share_prefix=False),
        _tree(world, "other", model="other"),
    ]
    (first, logps), (second, kept), (unshared, still_kept), (other, _) = run_ranks(said_here, 1, trees)[0]
    assert "reference (train)" in first
    assert "warning" not in first
    assert second == ""
    assert unshared.startswith("warning: ")
    assert "computed with other rows" in unshared
    assert logps == kept == still_kept
    assert "was made from other weights" in other


def test_a_reference_of_older_code_is_warned_about_where_it_was_given(world: Path) -> None:
    cache = world / "aged"
    trees = [{**_tree(world, name), "reference": {"cache": str(cache)}} for name in ("fresh", "aged_given")]
    (_, logps), (said, kept) = run_ranks(said_here, 1, trees, cache / "train.safetensors")[0]
    assert said.startswith("warning: ")
    assert "computed with other code" in said
    assert kept == logps


def test_a_reference_of_older_code_is_computed_anew_in_the_runs_own_folder(world: Path) -> None:
    tree = {**_tree(world, "own"), "reference": {}}
    (_, logps), (said, anew) = run_ranks(said_here, 1, [tree, tree], world / "own" / "reference" / "train.safetensors")[
        0
    ]
    assert "computed with other code; it is computed anew" in said
    assert anew == logps


def meanwhile_here(trees: list[dict], kept: Path, **of_the_other: str) -> tuple[str, bool]:
    """Two runs share a cache and begin together; the first ends while the second, with fewer steps, computes.

    Returns what the second says, and whether the cache is the first's at the end. `of_the_other`: of the first's key.
    """
    import numpy as np

    from megatron_dpop.training import reference_cache
    from megatron_dpop.training.reference import read_reference, write_reference

    _said(trees[0])
    first = read_reference(kept)
    kept.unlink()
    compute = reference_cache.compute_reference

    def and_meanwhile(*arguments: Any, **options: Any) -> Any:
        logps = compute(*arguments, **options)
        assert np.isnan(logps).any(), "the second needs a part of what the first has"
        write_reference(kept, first._replace(key=replace(first.key, **of_the_other)))
        return logps

    reference_cache.compute_reference = and_meanwhile
    try:
        said, _ = _said(trees[1])
    finally:
        reference_cache.compute_reference = compute
    return said, bool(np.array_equal(read_reference(kept).logps, first.logps, equal_nan=True))


@pytest.mark.parametrize(
    ("of_the_other", "words"), [({}, ""), ({"weights": "others"}, "was made from other weights; give another folder")]
)
def test_two_runs_that_share_a_cache_lose_nothing(world: Path, of_the_other: dict[str, str], words: str) -> None:
    cache = world / f"shared {len(of_the_other)}"
    trees = [_tree(world, f"{cache.name} {steps}") | {"reference": {"cache": str(cache)}} for steps in (3, 1)]
    for tree, steps in zip(trees, (3, 1), strict=True):
        tree["train"] = {"steps": steps, "global_batch_pairs": 2}
    said, is_the_firsts = run_ranks(partial(meanwhile_here, **of_the_other), 1, trees, cache / "train.safetensors")[0]
    assert is_the_firsts
    assert words in said
    assert ("was made from" in said) is bool(words)


def test_the_key_names_the_recipe_and_the_code() -> None:
    (first, second) = run_ranks(_keys, 1)[0]
    assert first["params"] == "bf16"
    assert second["params"] == "bf16 fp8 tensorwise weights but 1 end layers"
    assert first["code"].startswith("torch ")
    assert "megatron-core" in first["code"]


def _keys() -> list[dict[str, str]]:
    from megatron_dpop.config.schema import PrecisionConfig
    from megatron_dpop.training.reference_cache import code_fingerprint, named_precision

    eight = PrecisionConfig(fp8="tensorwise", fp8_params=True, bf16_end_layers=1)
    return [{"params": named_precision(given), "code": code_fingerprint()} for given in (PrecisionConfig(), eight)]


def test_code_is_known_by_what_it_does() -> None:
    before = 'def twice(x):\n    """Doubles."""\n    return 2 * x  # twice\n'
    assert meaning(before) == meaning("# Another comment.\ndef twice(x):\n    return (2 *\n        x)\n")
    assert meaning(before) != meaning(before.replace("2 * x", "x * 2"))
