"""A kept reference is used where it fits, warned about where only rounding differs, refused where it is wrong."""

import contextlib
import io
from pathlib import Path

import pytest

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


def said_here(trees: list[dict]) -> list[tuple[str, list[list[float]]]]:
    """What each config says while it gets its reference (or the error), and the reference."""
    return [_said(tree) for tree in trees]


def _said(tree: dict) -> tuple[str, list[list[float]]]:
    from checkpoint_convert.errors import UserError
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.config.schema import ParallelConfig
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(ParallelConfig(), seed=0)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.train import Run

    said = io.StringIO()
    logps: list[list[float]] = []
    with contextlib.redirect_stderr(said):
        run = Run(config, read_inputs(config, progress=False), device)
        try:
            reference = run.step_data()[0].reference
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
    assert "computed under another rows" in unshared
    assert logps == kept == still_kept
    assert "was made from other weights" in other
