"""A suspicious step is taken twice, says what the second attempt showed, and changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.tiny import model_and_pairs, write_config
from tests.training import train_here

pytestmark = pytest.mark.slow

RANKS, STEPS = 2, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_pairs(tmp_path_factory.mktemp("reruns"), 12, num_hidden_layers=2)


def _tree(world: Path, run: str, *, rerun: str | None) -> dict[str, Any]:
    return write_config(
        world,
        world / "model",
        parallel={"tensor": 2},
        lora={"rank": 4, "dropout": 0.5},  # a second attempt draws the same masks
        train={"steps": STEPS, "rerun": rerun},
        run={"dir": str(world / run)},
    )


def _values(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def _faulty_here(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains on a machine whose results differ from one attempt to the next, as Megatron's error injector has it."""
    from megatron.core import rerun_state_machine as megatron

    class Faulty(megatron.RerunErrorInjector):
        def __init__(self) -> None:
            super().__init__(1, megatron.RerunDiagnostic.TRANSIENT_ERROR)

    megatron.RerunStateMachine.__init__.__globals__["RerunErrorInjector"] = Faulty
    return train_here(tree)


def test_what_is_told_and_that_training_goes_on_as_without(world: Path) -> None:
    expected = _values(run_ranks(train_here, RANKS, _tree(world, "plain", rerun=None))[0])
    assert not (world / "plain" / "rejected_results.log").exists()

    sound = run_ranks(train_here, RANKS, _tree(world, "sound", rerun="validate_results"))[0]
    assert _values(sound) == expected
    assert (world / "sound" / "rejected_results.log").read_text() == ""

    twice = run_ranks(train_here, RANKS, _tree(world, "twice", rerun="report_determinism_stats"))[0]
    assert _values(twice) == expected

    faulty = run_ranks(_faulty_here, RANKS, _tree(world, "faulty", rerun="validate_results"))[0]
    assert _values(faulty) == expected
    told = (world / "faulty" / "rejected_results.log").read_text().splitlines()
    # Megatron judges from the second step on.
    assert [line.split("status=RerunValidationStatus.")[1].split()[0] for line in told] == [
        "INITIAL_RUN",
        "FIRST_RERUN_NOT_REPRODUCIBLE",
    ] * (STEPS - 1)
