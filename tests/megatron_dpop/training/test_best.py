"""The best validated checkpoint stays and is exported, the others go, and a run without patience left ends."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import Outcome, run_here

pytestmark = pytest.mark.slow


def _tree(folder: Path, run: str, steps: int, **best: object) -> dict:
    return write_config(
        folder,
        folder / "model",
        data={"validation": [str(folder / name) for name in ("held_out.jsonl", "others.jsonl")]},
        optimizer={"lr": 1e-2},
        train={"steps": steps, "validate_every": 1},
        checkpoint={"every": 3, "keep": 1, "export_hf": True, "best": best or None},
        run={"dir": str(folder / run)},
    )


def _kept(folder: Path, run: str) -> list[str]:
    return sorted(path.name for path in (folder / run / "checkpoints").glob("iter_*"))


def _same_weights(folder: Path, run: str, other: str) -> bool:
    one, two = (load_file(folder / name / "hf" / "model.safetensors") for name in (run, other))
    return all(bool((one[name] == two[name]).all()) for name in one)


def test_the_best_is_kept_exported_and_known_again(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    write_pairs(tmp_path / "held_out.jsonl", 5, seed=1)
    write_pairs(tmp_path / "others.jsonl", 3, seed=2)
    early: dict = {"metric": "validation/loss", "mode": "min"}
    first = {
        "two": _tree(tmp_path, "two", 2),
        "five": _tree(tmp_path, "five", 5),
        "early": _tree(tmp_path, "early", 5, **early),
    }
    then = {
        "later": _tree(tmp_path, "early", 7, **early),
        "late": _tree(tmp_path, "late", 5, metric="validation/source/others/rewards/margins", mode="max"),
        "patience": _tree(tmp_path, "patience", 5, patience=2, **early),
        "again": _tree(tmp_path, "patience", 5, patience=2, **early),
    }
    outcomes: list[Outcome] = run_ranks(run_here, 1, *first.values())[0]
    kept_after_five = _kept(tmp_path, "early")
    outcomes += run_ranks(run_here, 1, *then.values())[0]
    found = dict(zip([*first, *then], outcomes, strict=True))
    assert all(outcome.error is None for outcome in outcomes), [outcome.error for outcome in outcomes]
    losses = [line["validation/loss"] for line in found["five"].metrics]
    assert min(losses[1:]) == losses[2], "the test expects the second validated weights to be the best"

    # Step 2 is saved for its validation alone: checkpoint.every is 3, and keep is 1.
    assert kept_after_five == ["iter_0000002", "iter_0000005"]
    assert _kept(tmp_path, "early") == ["iter_0000002", "iter_0000007"]
    assert "after step 2" in found["later"].said
    assert _same_weights(tmp_path, "early", "two")
    assert not _same_weights(tmp_path, "early", "five")
    assert '"checkpoint": "iter_0000002"' in (tmp_path / "early" / "best.json").read_text()

    assert _kept(tmp_path, "late") == ["iter_0000005"]
    assert _same_weights(tmp_path, "late", "five")

    assert [line["step"] for line in found["patience"].metrics] == [0, 1, 2, 3, 4]
    assert "2 validations since were no better, so the run ends after step 4" in found["patience"].said
    assert _kept(tmp_path, "patience") == ["iter_0000002", "iter_0000004"]
    assert found["again"].comparable() == found["patience"].comparable()
    assert _same_weights(tmp_path, "patience", "two")
