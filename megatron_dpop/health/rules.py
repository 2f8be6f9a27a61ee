"""What a run's health means: each rule looks at the history and says in words what it sees at the newest line, or None.

Counts are of logged lines, so `logging.every` stretches them. docs/monitoring.md explains the thresholds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpop_base.metric_names import (
    ACCURACY,
    ACTIVE_FRACTION,
    CHOSEN_MINUS_REFERENCE,
    DRIFT,
    GRAD_NORM,
    LOAD_BALANCE,
    LOSS,
    PAIRS_PER_SECOND,
    PENALTY,
    TOKENS_PER_SECOND,
    VALIDATION,
)
from megatron_dpop.config.schema import RuleName
from megatron_dpop.health.history import History, LoggedValue, mean, median

FALLEN_NATS = 1.0  # a factor of e in probability
WON_ACCURACY = 0.6
FALLEN_LINES = 5
FALLEN_LINES_OF_SOURCE = 20  # a source has few of a step's pairs: their mean is noisier

ACTIVE_SHARE = 0.9
ACTIVE_LINES = 10

DRIFT_NATS = 0.01  # times DPOP's beta 0.3 and lambda 50: 0.15 of the loss

EXPLODED_TIMES = 10.0
EXPLODED_LINES = 5
EXPLODED_LEAST_BEFORE = 10
EXPLODED_MOST_BEFORE = 50

HALF_ACCURACY = 0.55
HALF_LINES = 50

PARTED_SHARE = 0.1  # of the least loss
PARTED_LEAST = 0.02  # of a loss; where the best is nearly 0, a tenth of it is noise
PARTED_ACCURACY = 0.05  # fewer pairs won
PARTED_LINES = 10

SLOWED_RATIO = 0.7
SLOWED_LINES = 10
SLOWED_LEAST_BEFORE = 20
SLOWED_MOST_BEFORE = 100

COLLAPSED_TIMES = 2.0
COLLAPSED_LINES = 10


@dataclass(frozen=True)
class HealthRule:
    name: RuleName
    title: str
    look: Callable[[History], str | None]


def chosen_below_reference(history: History) -> str | None:
    """DPO's failure: the margin grows by both answers becoming less likely."""
    for scope in history.scopes():
        lines = FALLEN_LINES_OF_SOURCE if scope else FALLEN_LINES
        for prefix, window in ((VALIDATION, 1), ("", lines)):
            seen = _fallen(history, prefix, scope, window)
            if seen:
                return f"{seen}: pairs are won by lowering both answers. {_towards_dpop(history)}"
    return None


def _fallen(history: History, prefix: str, scope: str, window: int) -> str | None:
    chosen = history.newest(prefix + scope + CHOSEN_MINUS_REFERENCE, window)
    accuracy = history.newest(prefix + scope + ACCURACY, window)
    is_old = bool(prefix) and prefix + scope + CHOSEN_MINUS_REFERENCE not in history.line
    if not chosen or not accuracy or is_old:
        return None
    # Not 0 where the reference is another model.
    start = history.series(prefix + scope + CHOSEN_MINUS_REFERENCE)[0].value
    start_accuracy = history.series(prefix + scope + ACCURACY)[0].value
    is_below = mean(chosen) <= min(0.0, start) - FALLEN_NATS
    is_winning = mean(accuracy) >= max(WON_ACCURACY, start_accuracy)
    if not (is_below and is_winning):
        return None
    where = f"on validation at step {chosen[-1].step}" if prefix else _steps(chosen)
    of_source = f" of {scope.split('/')[1]}" if scope else ""
    return (
        f"{where}, the chosen answers{of_source} are {-mean(chosen):.1f} nats less likely than under the reference, "
        f"while accuracy is {mean(accuracy):.0%}"
    )


def _towards_dpop(history: History) -> str:
    if history.settings.get("loss.name") == "dpop" or history.series(PENALTY):
        return "Raise loss.lambda, DPOP's weight against this, or lower optimizer.lr."
    return "DPOP's penalty is made against this: loss.name dpop, with loss.lambda 50 as in its paper."


def penalty_everywhere(history: History) -> str | None:
    active = history.newest(ACTIVE_FRACTION, ACTIVE_LINES)
    if not active or mean(active) < ACTIVE_SHARE:
        return None
    return (
        f"{_steps(active)}, DPOP's penalty is active on {mean(active):.0%} of pairs: nearly all chosen answers lie "
        "below the reference, and the penalty alone steers. Lower optimizer.lr; see that the reference is the model "
        "that training started from."
    )


def reference_drift(history: History) -> str | None:
    drift = history.newest(DRIFT, 1)
    is_start = history.step == 0 and history.settings.get("reference.model") is None
    if not is_start or not drift or drift[0].value <= DRIFT_NATS:
        return None
    return (
        f"before any training, policy and reference differ by up to {drift[0].value:.2g} nats on a completion: "
        "the reference was computed with other weights, precision, packing or layout. Delete its cache."
    )


def exploding_gradients(history: History) -> str | None:
    norm = history.line.get(GRAD_NORM)
    if norm is None:
        return None
    if not math.isfinite(norm):
        return f"at step {history.step}, the gradient's norm is not a finite number. Lower optimizer.lr."
    norms = _alike(history)
    recent, earlier = norms[-EXPLODED_LINES:], norms[:-EXPLODED_LINES][-EXPLODED_MOST_BEFORE:]
    if len(earlier) < EXPLODED_LEAST_BEFORE or median(recent) <= EXPLODED_TIMES * median(earlier):
        return None
    return (
        f"{_steps(recent)}, the gradient's norm is {median(recent):.3g} in the median, after {median(earlier):.3g} in "
        f"{len(earlier)} lines before. Lower optimizer.lr, lengthen optimizer.warmup_steps, and see that "
        "optimizer.clip_norm is on."
    )


def _alike(history: History) -> Sequence[LoggedValue]:
    """Gradient norms of lines like the newest: an active DPOP penalty alone makes them a hundred times larger."""
    norms = history.series(GRAD_NORM)[-3 * (EXPLODED_LINES + EXPLODED_MOST_BEFORE) :]
    penalised = {point.step for point in history.series(ACTIVE_FRACTION)[-len(norms) :] if point.value > 0}
    return [point for point in norms if (point.step in penalised) == (history.step in penalised)]


def accuracy_at_half(history: History) -> str | None:
    warmup = history.settings.get("optimizer.warmup_steps")
    accuracy = history.newest(ACCURACY, HALF_LINES)
    if not accuracy or (isinstance(warmup, int) and accuracy[0].step < warmup):
        return None
    # AFT wins a group only if its worst winner beats its best loser: chance is below a half.
    if mean(accuracy) >= HALF_ACCURACY or history.settings.get("loss.name") == "aft":
        return None
    return (
        f"{_steps(accuracy)}, accuracy is {mean(accuracy):.0%} after warm-up: nothing tells chosen from rejected. Look "
        "at the pairs (megatron-dpop data inspect): are they labelled right, do they differ? Else raise optimizer.lr."
    )


def validation_parting(history: History) -> str | None:
    if VALIDATION + LOSS not in history.line:
        return None
    validations = history.series(VALIDATION + LOSS)
    if not validations or validations[-1].step != history.step:
        return None
    best, now = min(validations, key=lambda point: point.value), validations[-1]
    then, recent = history.up_to(LOSS, best.step, PARTED_LINES), history.newest(LOSS, PARTED_LINES)
    if not then or not recent:
        return None
    has_risen = now.value >= best.value + max(PARTED_LEAST, PARTED_SHARE * abs(best.value))
    if not has_risen or mean(recent) >= mean(then) or not _wins_fewer_on_validation(history):
        return None
    return (
        f"at step {now.step}, the validation loss is {now.value:.3g}, after {best.value:.3g} at step {best.step}, "
        f"while the training loss went from {mean(then):.3g} to {mean(recent):.3g}: the pairs are learnt by "
        f"heart. Stop at step {best.step}, use more pairs or fewer steps, or lower optimizer.lr."
    )


def _wins_fewer_on_validation(history: History) -> bool:
    """True also where there is no accuracy. A few pairs with a large DPOP penalty raise the loss and still are won."""
    trained, held_out = history.newest(ACCURACY, PARTED_LINES), history.newest(VALIDATION + ACCURACY, 1)
    return not trained or not held_out or mean(held_out) <= mean(trained) - PARTED_ACCURACY


def throughput_drop(history: History) -> str | None:
    for name, unit in ((TOKENS_PER_SECOND, "tokens/s"), (PAIRS_PER_SECOND, "pairs/s")):
        recent = history.newest(name, SLOWED_LINES)
        earlier = history.series(name)[-SLOWED_LINES - SLOWED_MOST_BEFORE : -SLOWED_LINES]
        if len(earlier) >= SLOWED_LEAST_BEFORE:
            if median(recent) > SLOWED_RATIO * median(earlier):
                return None
            return (
                f"{_steps(recent)}, {median(recent):.3g} {unit} in the median, after {median(earlier):.3g} in the "
                f"{len(earlier)} lines before. See whether a device throttles, others share the machine, or the file "
                "system is slow; a start on other machines or at another layout shows here too."
            )
    return None


def router_collapse(history: History) -> str | None:
    """A router that favours few experts trains these alone, and favours them the more."""
    layers = [name for name in history.line if name.startswith(f"{LOAD_BALANCE}/")]
    found = [(name, history.series(name)) for name in layers if len(history.series(name)) >= 2 * COLLAPSED_LINES]
    grown = {name: mean(points[-COLLAPSED_LINES:]) / mean(points[:COLLAPSED_LINES]) for name, points in found}
    worst = max(grown, key=lambda name: grown[name], default=None)
    if worst is None or grown[worst] < COLLAPSED_TIMES:
        return None
    recent, first = history.newest(worst, COLLAPSED_LINES), history.series(worst)[:COLLAPSED_LINES]
    return (
        f"{_steps(recent)}, the busiest expert of layer {worst.rpartition('/')[2]} gets {mean(recent):.3g} times the "
        f"mean of all, after {mean(first):.3g} {_steps(first)}: the router sends ever more tokens to few experts. "
        "Lower optimizer.lr, set experts.freeze_router, or experts.balance_loss (0.001)."
    )


def _steps(points: Sequence[LoggedValue]) -> str:
    return f"over steps {points[0].step} to {points[-1].step}"


RULES = (
    HealthRule("chosen_below_reference", "Chosen answers fall below the reference", chosen_below_reference),
    HealthRule("penalty_everywhere", "DPOP's penalty is active on nearly all pairs", penalty_everywhere),
    HealthRule("reference_drift", "Policy and reference differ at the start", reference_drift),
    HealthRule("exploding_gradients", "Gradients explode", exploding_gradients),
    HealthRule("accuracy_at_half", "Accuracy stays at a half", accuracy_at_half),
    HealthRule("validation_parting", "Validation parts from training", validation_parting),
    HealthRule("throughput_drop", "Throughput drops", throughput_drop),
    HealthRule("router_collapse", "A router collapses", router_collapse),
)
