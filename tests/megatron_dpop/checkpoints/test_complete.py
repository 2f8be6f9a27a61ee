"""The checkpoint to go on from is the last one that is whole; others are passed over, and said to be."""

import shutil
from pathlib import Path

import pytest

from dpop_base.checkpoint_names import TRACKER, iteration_name
from dpop_base.errors import UserError
from megatron_dpop.checkpoints.complete import complete_iterations, incompleteness
from megatron_dpop.checkpoints.intact import CHECKSUMS
from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoints after steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("complete")
    write_model(folder / "model", dtype="bfloat16")
    write_pairs(folder / "pairs.jsonl", 8)
    tree = write_config(folder, folder / "model", checkpoint={"every": 1, "keep": 3})
    run_ranks(train_here, 1, tree)
    return folder / "run" / "checkpoints"


@pytest.fixture
def checkpoints(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def _found(checkpoints: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    return next(complete_iterations(checkpoints, said.append), None), said


def test_the_last_whole_checkpoint(checkpoints: Path) -> None:
    assert _found(checkpoints) == (3, [])
    assert incompleteness(checkpoints / iteration_name(3)) is None


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILT = {
    "no metadata.json": (lambda folder: (folder / "metadata.json").unlink(), "it has no metadata.json"),
    "no .metadata": (lambda folder: (folder / ".metadata").unlink(), "it has no .metadata"),
    "broken .metadata": (lambda folder: (folder / ".metadata").write_bytes(b"x"), ".metadata cannot be read: "),
    "file missing": (lambda folder: max(folder.glob("*.distcp")).unlink(), "distcp is 0 bytes long and should be "),
    "file cut short": (lambda folder: _shorten(max(folder.glob("*.distcp"))), "bytes long and should be "),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_half_written_checkpoint_is_passed_over(checkpoints: Path, case: str) -> None:
    spoil, reason = SPOILT[case]
    spoil(checkpoints / iteration_name(3))
    iteration, (line,) = _found(checkpoints)
    assert iteration == 2
    assert line.startswith(f"passing over {checkpoints / iteration_name(3)}: ")
    assert reason in line


def test_a_checkpoint_that_the_tracker_does_not_name_yet_is_passed_over(checkpoints: Path) -> None:
    (checkpoints / TRACKER).write_text("2")
    iteration, (line,) = _found(checkpoints)
    assert iteration == 2
    assert f"{iteration_name(3)}: {TRACKER} does not name it yet" in line


def test_a_run_whose_checkpoints_are_all_spoilt_begins_anew(checkpoints: Path) -> None:
    for folder in checkpoints.glob("iter_*"):
        (folder / ".metadata").unlink()
    iteration, said = _found(checkpoints)
    assert iteration is None
    assert len(said) == 3


def test_no_checkpoints(tmp_path: Path) -> None:
    assert _found(tmp_path / "none") == (None, [])


def test_a_broken_tracker_is_written_anew_where_checksums_show_what_is_complete(checkpoints: Path) -> None:
    tracker = checkpoints / TRACKER
    tracker.write_text("soon")
    assert _found(checkpoints) == (3, [f"{tracker}: holds 'soon'; iter_0000003 is the newest complete checkpoint"])
    assert tracker.read_text() == "3"
    tracker.write_text("soon")
    for folder in checkpoints.glob("iter_*"):
        (folder / CHECKSUMS).unlink()
    with pytest.raises(UserError, match="holds 'soon'; write the iteration"):
        _found(checkpoints)
