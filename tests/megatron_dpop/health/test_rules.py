"""Each rule on histories that show it and on ones that come near and do not."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from megatron_dpop.config.schema import RuleName
from megatron_dpop.health import Monitor
from megatron_dpop.health.monitor import Finding, findings
from megatron_dpop.health.rules import (
    ACTIVE_LINES,
    ACTIVE_SHARE,
    COLLAPSED_LINES,
    COLLAPSED_TIMES,
    DRIFT_NATS,
    EXPLODED_LEAST_BEFORE,
    EXPLODED_LINES,
    EXPLODED_MOST_BEFORE,
    EXPLODED_TIMES,
    FALLEN_LINES,
    FALLEN_NATS,
    HALF_ACCURACY,
    HALF_LINES,
    PARTED_ACCURACY,
    PARTED_LEAST,
    PARTED_LINES,
    RULES,
    SLOWED_LEAST_BEFORE,
    SLOWED_LINES,
    SLOWED_MOST_BEFORE,
    SLOWED_RATIO,
    WON_ACCURACY,
)
from tests.megatron_dpop.health.histories import Lines, changed, healthy

ROOT = Path(__file__).parents[3]
QUICKSTART = Path(__file__).parent / "quickstart"
CHOSEN, ACCURACY = "logps/chosen_minus_reference", "rewards/accuracies"


def _found(lines: Lines, **settings: Any) -> dict[str, Finding]:
    flat = {key.replace("__", "."): value for key, value in settings.items()}
    return {finding.rule: finding for finding in findings(flat, lines.items())}


def test_every_rule_has_its_name_in_the_config() -> None:
    assert tuple(rule.name for rule in RULES) == get_args(RuleName)


THRESHOLDS = {
    "chosen_below_reference": [f"{FALLEN_LINES} lines", f"{FALLEN_NATS:g} nat ", f"at least {WON_ACCURACY:g}"],
    "penalty_everywhere": [f"{ACTIVE_LINES} lines", f"at least {ACTIVE_SHARE:g}"],
    "reference_drift": [f"{DRIFT_NATS:g} nats"],
    "exploding_gradients": [
        f"of {EXPLODED_LINES} lines",
        f"{EXPLODED_TIMES:g} times",
        f"the {EXPLODED_LEAST_BEFORE} to {EXPLODED_MOST_BEFORE} before",
    ],
    "accuracy_at_half": [f"{HALF_LINES} lines", f"below {HALF_ACCURACY:g}"],
    "validation_parting": [
        f"a tenth (and {PARTED_LEAST:g})",
        f"{PARTED_LINES} lines",
        f"{100 * PARTED_ACCURACY:g} points",
    ],
    "throughput_drop": [
        f"{SLOWED_LINES} lines",
        f"at most {SLOWED_RATIO:g} ",
        f"the {SLOWED_LEAST_BEFORE} to {SLOWED_MOST_BEFORE} before",
    ],
    "router_collapse": [f"{COLLAPSED_LINES} lines", f"at least {COLLAPSED_TIMES:g} times"],
}


@pytest.mark.parametrize("rule", get_args(RuleName))
def test_the_documented_thresholds_are_the_rules(rule: str) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    (row, _) = [line for line in text.splitlines() if line.startswith(f"| `{rule}` |")]
    assert [number for number in THRESHOLDS[rule] if number not in row] == []


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", ["dpo", "dpop"])
def test_a_healthy_run_shows_nothing(loss: str, seed: int) -> None:
    assert not _found(healthy(300, loss=loss, seed=seed), loss__name=loss, optimizer__warmup_steps=10)


def _recorded(name: str) -> Lines:
    lines = map(json.loads, (QUICKSTART / f"{name}.jsonl").read_text().splitlines())
    return {line.pop("step"): line for line in lines}


def test_the_quickstarts_dpo_is_named_and_its_dpop_is_not() -> None:
    """Recorded: SmolLM2-135M, 16 steps of the same pairs in the same order."""
    found = _found(_recorded("dpo"), loss__name="dpo")
    assert list(found) == ["chosen_below_reference"]
    assert found["chosen_below_reference"].first_step == 6
    assert "46.0 nats less likely" in found["chosen_below_reference"].what
    assert "loss.name dpop, with loss.lambda 50" in found["chosen_below_reference"].what
    assert not _found(_recorded("dpop"), loss__name="dpop")


@pytest.mark.parametrize(
    ("chosen", "accuracy", "is_seen"),
    [(-1.2, 0.9, True), (-0.8, 0.9, False), (-30.0, 0.57, False), (-30.0, 0.65, True), (math.nan, 0.9, False)],
)
def test_chosen_below_the_reference_while_pairs_are_won(chosen: float, accuracy: float, is_seen: bool) -> None:
    lines = changed(healthy(loss="dpo"), lambda step: {CHOSEN: chosen, ACCURACY: accuracy} if step else {})
    found = _found(lines, loss__name="dpo")
    assert set(found) == ({"chosen_below_reference"} if is_seen else set())
    if is_seen:
        assert found["chosen_below_reference"].first_step == 5
        assert found["chosen_below_reference"].last_step == 120


def test_a_single_low_batch_is_noise() -> None:
    assert not _found(changed(healthy(loss="dpo"), lambda step: {CHOSEN: -6.0} if step == 70 else {}))


def test_one_low_validation_is_enough() -> None:
    low = {f"validation/{CHOSEN}": -1.5, f"validation/{ACCURACY}": 0.9}
    found = _found(changed(healthy(loss="dpo"), lambda step: low if step == 60 else {}))
    assert (found["chosen_below_reference"].first_step, found["chosen_below_reference"].last_step) == (60, 60)
    assert "on validation at step 60" in found["chosen_below_reference"].what


def test_another_reference_counts_from_where_training_began() -> None:
    """Against a reference that fits the chosen answers better, they lie below it before training."""
    climbs = changed(healthy(loss="dpo"), lambda step: {CHOSEN: -20.0 + step / 12, ACCURACY: 0.9})
    assert not _found(climbs, reference__model="better")
    falls = changed(healthy(loss="dpo"), lambda step: {CHOSEN: -20.0 - step / 12, ACCURACY: 0.9})
    assert set(_found(falls, reference__model="better")) == {"chosen_below_reference"}


def test_under_dpop_the_fix_is_its_weight() -> None:
    lines = changed(healthy(), lambda step: {CHOSEN: -4.0} if step >= 50 else {})
    assert "Raise loss.lambda" in _found(lines)["chosen_below_reference"].what


@pytest.mark.parametrize("prefix", ["", "validation/"])
def test_one_source_of_several(prefix: str) -> None:
    """The mean of all pairs hides what happens to one source; the finding names it."""

    def with_sources(step: int, line: dict[str, float]) -> dict[str, float]:
        if prefix + CHOSEN not in line:
            return line
        low = -5.0 if step >= 40 else 0.0
        of = {"code": low, "chat": 6.0}
        extra = {f"{prefix}source/{name}/{CHOSEN}": value for name, value in of.items()}
        return line | extra | {f"{prefix}source/{name}/{ACCURACY}": 0.9 for name in of}

    # One training line, so that the sources are known where only validation shows the fault.
    lines = {step: with_sources(step, line) for step, line in healthy(loss="dpo").items()}
    if prefix:
        lines[0] |= {f"source/{name}/{CHOSEN}": 0.0 for name in ("code", "chat")}
    found = _found(lines)
    assert set(found) == {"chosen_below_reference"}
    assert "the chosen answers of code are 5.0 nats" in found["chosen_below_reference"].what


@pytest.mark.parametrize(("active", "is_seen"), [(0.95, True), (0.85, False)])
def test_penalty_on_nearly_all_pairs(active: float, is_seen: bool) -> None:
    found = _found(changed(healthy(), lambda step: {"dpop/active_fraction": active} if step >= 60 else {}))
    assert set(found) == ({"penalty_everywhere"} if is_seen else set())
    assert not is_seen or "95% of pairs" in found["penalty_everywhere"].what


@pytest.mark.parametrize(("drift", "reference", "is_seen"), [(0.4, None, True), (2e-4, None, False), (9.0, "x", False)])
def test_drift_before_training(drift: float, reference: str | None, is_seen: bool) -> None:
    lines = changed(healthy(), lambda step: {"reference/drift": drift})
    found = _found(lines, reference__model=reference)
    assert set(found) == ({"reference_drift"} if is_seen else set())
    assert not is_seen or (found["reference_drift"].first_step, found["reference_drift"].last_step) == (0, 0)


@pytest.mark.parametrize(("growth", "is_seen"), [(1.12, True), (1.01, False)])
@pytest.mark.parametrize("loss", ["dpo", "dpop"])
def test_gradients_that_explode(loss: str, growth: float, is_seen: bool) -> None:
    lines = healthy(loss=loss)
    grown = changed(lines, lambda step: {"grad_norm": lines[step].get("grad_norm", 0) * growth ** max(0, step - 30)})
    assert set(_found(grown)) == ({"exploding_gradients"} if is_seen else set())


def test_single_spikes_and_a_penalty_that_sets_in_are_no_explosion() -> None:
    lines = healthy(loss="dpo")
    spikes = changed(lines, lambda step: {"grad_norm": 9000.0} if step % 9 == 8 else {})
    assert not _found(spikes)
    sets_in = {
        step: {**line, "dpop/active_fraction": 0.25 if step >= 60 else 0.0, "grad_norm": 3000.0 if step >= 60 else 20.0}
        for step, line in healthy(loss="dpo").items()
        if step < 120
    }
    assert not _found(sets_in)


def test_a_gradient_that_is_no_number() -> None:
    found = _found(changed(healthy(), lambda step: {"grad_norm": math.inf} if step == 5 else {}))
    assert found["exploding_gradients"].first_step == 5


@pytest.mark.parametrize(("accuracy", "is_seen"), [(0.52, True), (0.58, False)])
def test_accuracy_that_stays_at_a_half(accuracy: float, is_seen: bool) -> None:
    lines = changed(
        healthy(160), lambda step: {ACCURACY: accuracy if step else 0.0, f"validation/{ACCURACY}": accuracy}
    )
    found = _found(lines, optimizer__warmup_steps=30)
    assert set(found) == ({"accuracy_at_half"} if is_seen else set())
    assert not is_seen or found["accuracy_at_half"].first_step == 79  # the 50 steps after 30 of warm-up
    assert not _found(lines, loss__name="aft")
    assert not _found(lines, optimizer__warmup_steps=120)


def _overfits(*, accuracy: float) -> Lines:
    """The validation loss is least at step 40 and rises; training goes on to fall."""

    def change(step: int) -> dict[str, float]:
        rise = max(0, step - 40) / 100
        held_out = {"validation/loss": 0.4 - min(step, 40) / 200 + rise, f"validation/{ACCURACY}": accuracy}
        return {"loss": 0.7 * math.exp(-step / 50), ACCURACY: 0.95} | held_out

    return changed(healthy(loss="dpo"), change)


def test_validation_that_parts_from_training() -> None:
    found = _found(_overfits(accuracy=0.8))
    assert set(found) == {"validation_parting"}
    assert found["validation_parting"].first_step == 60
    assert "Stop at step 40" in found["validation_parting"].what
    assert not _found(_overfits(accuracy=0.93))  # the same losses, and as many pairs are won as in training


def test_validation_that_rises_with_training_is_another_fault() -> None:
    worse = {"loss": 2.0, "validation/loss": 2.0, f"validation/{ACCURACY}": 0.7}
    assert not _found(changed(healthy(loss="dpo"), lambda step: worse if step >= 50 else {}))


def test_a_loss_without_pairs_parts_by_its_loss_alone() -> None:
    lines = {
        step: {"loss": 3 - step / 100, "logps/chosen": -80.0}
        | ({"validation/loss": 3 + step / 100} if step % 20 == 0 else {})
        for step in range(120)
    }
    assert set(_found(lines, loss__name="sft")) == {"validation_parting"}


@pytest.mark.parametrize("logged", [("perf/pairs_per_second", "perf/tokens_per_second"), ("perf/pairs_per_second",)])
@pytest.mark.parametrize(("ratio", "is_seen"), [(0.5, True), (0.8, False)])
def test_throughput_that_drops(logged: tuple[str, ...], ratio: float, is_seen: bool) -> None:
    lines = healthy()
    slower = {
        step: {
            name: value * ratio if name.startswith("perf/") and step >= 60 else value
            for name, value in line.items()
            if not name.startswith("perf/") or name in logged
        }
        for step, line in lines.items()
    }
    found = _found(slower)
    assert set(found) == ({"throughput_drop"} if is_seen else set())
    assert not is_seen or 65 <= found["throughput_drop"].first_step <= 70


def test_one_slow_step_is_no_drop() -> None:
    assert not _found(changed(healthy(), lambda step: {"perf/tokens_per_second": 9.0} if step == 60 else {}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_passed_over(value: float) -> None:
    lines = healthy(loss="dpo")
    broken = {
        step: {name: value if step % 3 == 1 and name != "grad_norm" else number for name, number in line.items()}
        for step, line in lines.items()
    }
    assert not _found(broken)
    nothing = {step: dict.fromkeys(line, value) for step, line in lines.items() if step % 20 == 0}
    assert set(_found(nothing)) == {"exploding_gradients"}  # of which that is the worst kind


def test_a_monitor_says_a_thing_once_and_knows_how_long_it_held() -> None:
    lines = changed(healthy(loss="dpo"), lambda step: {CHOSEN: -9.0} if 40 <= step < 60 else {})
    monitor = Monitor({})
    said = [alert for step, line in lines.items() for alert in monitor.observe(step, line)]
    assert [alert.rule for alert in said] == ["chosen_below_reference"]
    (finding,) = monitor.findings
    assert finding.first_step == said[0].step
    assert 59 <= finding.last_step <= 63
    line = str(said[0])
    assert line.startswith(f"step {said[0].step}: Chosen answers fall below the reference (chosen_below_reference): ")
    assert "\n" not in line


def test_what_is_known_depends_on_the_lines_alone() -> None:
    """A resumed run reads the lines that it keeps: one monitor of all lines knows what two in a row do."""
    lines = changed(healthy(loss="dpo"), lambda step: {CHOSEN: -9.0} if step >= 40 else {})
    whole = findings({}, lines.items())
    first, second = Monitor({}), Monitor({})
    for step in range(41):
        first.observe(step, lines[step])
    for step, line in lines.items():
        second.observe(step, line)
        if step == 40:
            assert second.findings == first.findings
    assert second.findings == whole


@pytest.mark.parametrize(
    ("end", "is_seen"),
    [(6.5, True), (5.5, False), (math.nan, False)],  # of layer 3's busiest expert, over the mean; it begins at 3
)
def test_a_router_that_collapses(end: float, is_seen: bool) -> None:
    """Layer 1 is uneven from the start and stays so: its experts are specialists of such data."""
    lines = healthy(60)
    for step, line in lines.items():
        loads = {"1": 9.0 + 0.5 * math.sin(step), "3": 3.0 + (end - 3.0) * min(1.0, max(0, step - 10) / 30)}
        if step < 60:
            line |= {f"moe/load_balance/{layer}": load for layer, load in loads.items()}
            line["moe/load_balance"] = max(loads.values())
    found = _found(lines)
    assert set(found) == ({"router_collapse"} if is_seen else set())
    if is_seen:
        assert "the busiest expert of layer 3 gets 6.5 times the mean" in found["router_collapse"].what
        assert 35 < found["router_collapse"].first_step < 50
