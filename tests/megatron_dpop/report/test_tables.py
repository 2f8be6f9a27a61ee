"""Tables and sentences of known runs."""

from dataclasses import replace
from pathlib import Path

from megatron_dpop.report.findings import finding
from megatron_dpop.report.run import ReportedRun, read_run
from megatron_dpop.report.tables import differences, results, side_by_side, throughput
from tests.megatron_dpop.report.runs import metrics, write_run

MINUS = "\N{MINUS SIGN}"


def _run(folder: Path, **options) -> ReportedRun:
    return read_run(write_run(folder, **options), name=folder.name)


def _pair(tmp_path: Path) -> list[ReportedRun]:
    return [_run(tmp_path / "dpo", loss="dpo", end=-6.1), _run(tmp_path / "dpop", end=1.8)]


def test_results_have_one_start_if_it_is_the_same(tmp_path: Path) -> None:
    table = results(_pair(tmp_path))
    assert table is not None
    assert [row.label for row in table.rows] == ["before training", "dpo, after 20 steps", "dpop, after 20 steps"]
    assert table.columns[2] == "Chosen minus reference, nats"
    assert [row.cells[2] for row in table.rows] == ["0", f"{MINUS}6.10", "+1.80"]
    assert [row.cells[0] for row in table.rows] == ["0%", "100%", "100%"]
    assert "every margin is exactly 0" in table.caption


def test_a_card_says_of_a_loss_what_is_not_usual(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    loss = {"loss.name": "dpo", "loss.beta": 0.1, "loss.label_smoothing": 0.0, "loss.ld_alpha": 0.5, "loss.other": 2}
    assert finding(replace(run, config=loss)).loss == "dpo, beta 0.1, ld_alpha 0.5, other 2"
    unknown = {"loss.name": "new", "loss.beta": 0.1, "loss.gamma": 1.0}
    assert finding(replace(run, config=unknown)).loss == "new, beta 0.1, gamma 1.0"


def test_results_have_a_start_each_if_they_differ(tmp_path: Path) -> None:
    runs = _pair(tmp_path)
    runs[1].metrics[0]["validation/logps/chosen"] = -99.0
    table = results(runs)
    assert table is not None
    assert [row.label for row in table.rows][:2] == ["dpo, before training", "dpop, before training"]
    assert table.rows[1].cells[3] == f"{MINUS}99.00"


def test_run_that_trains_still_is_read_from_its_training_pairs(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", rows=metrics(20, end=-6.0)[:7])
    table = results([run])
    assert table is not None
    assert [row.label for row in table.rows] == ["training step 0", "training step 6"]
    shown = finding(run)
    assert shown.progress == "step 7 of 20"
    assert shown.sentence.startswith("On the training pairs of step 6, the chosen answers are ")


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", rows=[{"step": 0, "learning_rate": 1e-5}])
    assert results([run]) is None
    assert throughput([run]) is None
    assert finding(run).sentence == "No results yet."


def test_findings_say_which_way_the_chosen_answers_went(tmp_path: Path) -> None:
    dpo, dpop = map(finding, _pair(tmp_path))
    assert dpo.sentence == (
        "On validation, the chosen answers are 6.10 nats less likely than under the reference, while accuracy is 100%."
    )
    assert dpop.sentence == (
        "On validation, the chosen answers are 1.80 nats likelier than under the reference, and accuracy is 100%."
    )
    assert (dpo.loss, dpop.loss) == ("dpo, beta 0.3", "dpop, beta 0.3, lambda 50.0")
    assert (dpo.chosen, dpo.accuracy) == (f"{MINUS}6.10", "100%")


def test_finding_of_a_loss_without_reference(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 2.0 - step, "logps/chosen": -50.0 + step} for step in range(2)]
    shown = finding(_run(tmp_path / "sft", loss="sft", rows=rows, steps=2))
    assert shown.sentence == (
        "On the training pairs of step 1, the chosen answers' log-probability "
        f"went from {MINUS}50.00 to {MINUS}49.00 nats."
    )
    only_loss = finding(_run(tmp_path / "loss", rows=[{"step": 0, "loss": 2.0}], steps=1))
    assert only_loss.sentence == "On the training pairs of step 0, the loss is 2.00."


def test_finding_of_a_broken_run_does_not_claim_anything(tmp_path: Path) -> None:
    rows = [{"step": 0, "logps/chosen_minus_reference": float("nan")}]
    assert "is not a finite number" in finding(_run(tmp_path / "run", rows=rows)).sentence


def test_configs_side_by_side_mark_what_differs(tmp_path: Path) -> None:
    table = side_by_side(_pair(tmp_path), lambda run: run.config)
    assert [(row.label, *row.cells) for row in differences(table).rows] == [
        ("loss.name", "dpo", "dpop"),
        ("loss.lambda", "\N{EN DASH}", "50.0"),
        ("run.dir", "runs/dpo", "runs/dpop"),
    ]
    labels = [row.label for row in table.rows]
    assert labels.index("loss.lambda") < labels.index(
        "optimizer.name"
    )  # beside its section, though only one run has it
    assert len(table.rows) > 10


def test_throughput_leaves_out_the_first_step(tmp_path: Path) -> None:
    rows = [
        {"step": s, "perf/pairs_per_second": v, "perf/peak_memory_bytes": 2**30} for s, v in enumerate([1, 4, 5, 9])
    ]
    table = throughput([_run(tmp_path / "run", rows=rows)])
    assert table is not None
    assert list(table.columns) == ["Throughput, pairs/s", "Peak memory of a process"]
    assert list(table.rows[0].cells) == ["5.00", "1.0 GiB"]
