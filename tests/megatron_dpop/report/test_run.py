"""Reading run folders: whole, half-written, foreign."""

import json
import math
import re
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.report.run import distinct_names, read_run, read_runs
from tests.megatron_dpop.report.runs import metrics, write_run


def test_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "dpop", steps=20, end=1.5), name="dpop")
    assert run.notes == ()
    assert (run.steps_done, run.steps_planned, run.is_unfinished) == (20, 20, False)
    assert run.last("validation/logps/chosen_minus_reference") == pytest.approx(1.5)
    assert [step for step, _ in run.series("validation/loss")] == [0, 20]
    assert len(run.series("loss")) == 20
    assert run.config["optimizer.betas"] == [0.9, 0.999]
    assert run.environment["packages.torch"] == "2.13.0"


def test_line_being_written_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows=metrics(20, end=1.0)[:7])
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss": 0.6')
    run = read_run(folder, name="run")
    assert run.steps_done == 7
    assert run.is_unfinished
    assert len(run.notes) == 1
    assert "last line" in run.notes[0]


def test_unreadable_lines_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    broken = [lines[0], "garbage", '{"loss": 1.0}', "[1, 2]", '{"step": true}', '{"step": 1.5}', *lines[1:], ""]
    (folder / "metrics.jsonl").write_text("\n".join(broken), encoding="utf-8")
    run = read_run(folder, name="run")
    assert run.steps_done == 3
    assert run.notes == ("metrics.jsonl has 5 unreadable line(s), left out: 2, 3, 4, 5, 6.",)


def test_other_versions_keys_are_kept_if_numbers(tmp_path: Path) -> None:
    row = {"step": 0, "loss": 0.7, "new/metric": 3, "text": "x", "flag": True, "nested": {"a": 1}, "huge": 10**400}
    run = read_run(write_run(tmp_path / "run", rows=[row]), name="run")
    assert run.metrics == {0: {"loss": 0.7, "new/metric": 3.0, "huge": math.inf}}


def test_step_written_twice_counts_as_written_last(tmp_path: Path) -> None:
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 2.0}, {"step": 0, "loss": 3.0, "grad_norm": 4.0}]
    run = read_run(write_run(tmp_path / "run", rows=rows), name="run")
    assert list(run.metrics.items()) == [(0, {"loss": 3.0, "grad_norm": 4.0}), (1, {"loss": 2.0})]


def test_missing_and_broken_side_files_are_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    (folder / "config.yaml").unlink()
    (folder / "environment.json").write_text('{"python": "3.1', encoding="utf-8")
    run = read_run(folder, name="run")
    assert run.notes == ("config.yaml is missing.", "environment.json is not readable.")
    assert (run.config, run.environment, run.is_unfinished) == ({}, {}, False)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_finished_run_without_validation_is_finished_however_it_logged(tmp_path: Path, every: int) -> None:
    rows = [{"step": step, "loss": 1.0} for step in range(0, 20, every)]
    folder = write_run(tmp_path / "run", rows=rows, steps=20)
    text = (folder / "config.yaml").read_text().replace("every: 1", f"every: {every}")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    assert not read_run(folder, name="run").is_unfinished


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, r"no such folder; give"),
        (lambda folder: folder.mkdir(), r"not a run \(it has no metrics.jsonl\); give"),
        (lambda folder: write_run(folder, rows=[]), r"metrics.jsonl: holds no complete step yet; wait"),
        (lambda folder: write_run(folder, rows=[{"step": 0}]), r"holds no complete step yet; wait"),
        (lambda folder: folder.write_text("x"), r"no such folder; give"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, prepare, message: str) -> None:
    folder = tmp_path / "run"
    prepare(folder)
    with pytest.raises(UserError, match=message) as error:
        read_runs([folder])
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_metrics_is_one_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    (folder / "metrics.jsonl").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(UserError, match=re.escape("holds no complete step")):
        read_run(folder, name="run")


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("/runs/a/dpo"), Path("/runs/b/dpo"), Path("/runs/b/dpop")]
    assert distinct_names(paths) == ["a/dpo", "b/dpo", "dpop"]
    assert distinct_names([Path("/runs/dpo"), Path("/runs/dpo")]) == ["dpo", "dpo"]
    assert distinct_names([Path("/x"), Path("/a/x")]) == ["/x", "a/x"]


def test_run_written_by_json_dumps_with_nan(tmp_path: Path) -> None:
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": float("nan")}]
    assert "NaN" in json.dumps(rows[1])
    assert math.isnan(read_run(write_run(tmp_path / "run", rows=rows), name="run").metrics[1]["loss"])
