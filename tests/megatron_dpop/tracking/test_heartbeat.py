"""The heartbeat says what a run does; `saved` changes exactly when a restart would begin further on."""

import json
from pathlib import Path

import pytest

from dpop_base.run_names import HEARTBEAT
from megatron_dpop.tracking.heartbeat import Heartbeat


def test_changes_are_written_at_once_and_steps_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    heartbeat = Heartbeat(tmp_path, silent=False)

    def written() -> dict:
        return json.loads((tmp_path / HEARTBEAT).read_text())

    heartbeat.beat("training", step=1, steps=9)
    first = written()
    assert (first["state"], first["step"], first["saved"], first["job"], first["restarts"]) == (
        "training",
        1,
        None,
        "17",
        2,
    )
    heartbeat.beat("training", step=2, steps=9)
    assert written()["step"] == 1
    heartbeat.beat("training", saved="iter_0000002")
    assert (written()["step"], written()["saved"]) == (2, "iter_0000002")
    heartbeat.beat("failed", error="no")
    assert (written()["state"], written()["error"], written()["saved"]) == ("failed", "no", "iter_0000002")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    Heartbeat(tmp_path, silent=True).beat("training", step=1)
    assert not list(tmp_path.iterdir())


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Heartbeat(tmp_path / "file", silent=False).beat("training", step=1)
