"""What the known metrics are called, how they are written, and which of them the report draws first."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dpop_base.metric_names import (
    ACCURACY,
    ACTIVE_FRACTION,
    BALANCE_LOSS,
    CHOSEN_LOGP,
    CHOSEN_MINUS_REFERENCE,
    CHOSEN_REWARD,
    DRIFT,
    GRAD_NORM,
    LOAD_BALANCE,
    LOSS,
    MARGIN,
    MFU,
    MODEL_TFLOPS,
    PAIRS_PER_SECOND,
    PEAK_MEMORY,
    PENALTY,
    REJECTED_LOGP,
    REJECTED_REWARD,
    ROUTE_AGREEMENT,
    SLOWEST_RANK,
    STEP_SECONDS,
    STRAGGLER,
    TOKENS_PER_SECOND,
    VALIDATION,
    Z_LOSS,
)

Style = Literal["number", "percent", "bytes"]


@dataclass(frozen=True)
class Metric:
    """How one metric is drawn and written."""

    key: str
    title: str
    note: str = ""
    unit: str = ""
    style: Style = "number"
    zero: str | None = None  # the chart includes 0 and draws it as a line with this label, which may be empty
    heading: str = ""  # of a table's column; empty: the title
    may_be_log: bool = False  # a logarithmic axis where values span orders of magnitude


METRICS = (
    Metric(
        CHOSEN_MINUS_REFERENCE,
        "Chosen log-probability minus reference",
        "How much likelier the chosen answers are than under the reference model. Below zero, training takes "
        "probability away from the answers it is meant to prefer.",
        unit="nats",
        zero="reference",
        heading="Chosen minus reference",
    ),
    Metric(CHOSEN_REWARD, "Chosen reward", "β times log-probability minus reference", zero=""),
    Metric(REJECTED_REWARD, "Rejected reward", "β times log-probability minus reference", zero=""),
    Metric(ACCURACY, "Accuracy", "Pairs whose chosen answer has the higher reward", style="percent"),
    Metric(MARGIN, "Margin", "Chosen reward minus rejected reward", zero=""),
    Metric(LOSS, "Loss", "Mean over the pairs of a step", may_be_log=True),
    Metric(GRAD_NORM, "Gradient norm", "Before clipping", may_be_log=True),
    Metric(PAIRS_PER_SECOND, "Throughput", unit="pairs/s", zero=""),
    Metric(CHOSEN_LOGP, "Chosen log-probability", "Sum over the answer's tokens", unit="nats"),
    Metric(REJECTED_LOGP, "Rejected log-probability", "Sum over the answer's tokens", unit="nats"),
    Metric(
        PENALTY,
        "DPOP penalty",
        "Reference minus chosen log-probability where that is positive",
        unit="nats",
        zero="",
    ),
    Metric(ACTIVE_FRACTION, "Pairs with an active DPOP penalty", style="percent"),
    Metric("dpop/reward", "Chosen reward less the DPOP penalty", "As the loss takes it", zero=""),
    Metric(DRIFT, "Reference drift", "Largest difference of policy and reference at step 0", unit="nats"),
    Metric(
        LOAD_BALANCE,
        "Load of the busiest expert",
        "Of models with experts: its tokens over the mean of all experts, in the layer where that is largest, and as "
        "moe/load_balance/N in layer N. 1 is even; padding is routed too, and counted",
    ),
    Metric(
        ROUTE_AGREEMENT,
        "Tokens with the reference's experts",
        "Of models with experts: one token of each completion in every layer, the one that predicts the middle of its "
        "scored tokens; as moe/route_agreement/N in layer N",
        style="percent",
    ),
    Metric(BALANCE_LOSS, "Routers' loss for even loads", "Mean over pairs and layers, before its weight; 1 is even"),
    Metric(Z_LOSS, "Routers' loss for small logits", "Mean over pairs and layers, before its weight"),
    Metric("learning_rate", "Learning rate", zero=""),
    Metric("data/pad_fraction", "Padding in rows", style="percent"),
    Metric("data/shared_fraction", "Tokens saved by prefix sharing", style="percent"),
    Metric("data/consumed_pairs", "Pairs consumed", unit="pairs", zero=""),
    Metric(STEP_SECONDS, "Step time", unit="s", zero=""),
    Metric(
        STRAGGLER,
        "Slowest rank's time",
        "Until it has computed its share of a step, over the median of all ranks; those that share a model replica "
        "wait for each other within it",
        zero="",
    ),
    Metric(SLOWEST_RANK, "Slowest rank", zero=""),
    Metric(TOKENS_PER_SECOND, "Token throughput", unit="tokens/s", zero=""),
    Metric(MODEL_TFLOPS, "Model FLOPs per device", unit="TFLOP/s", zero=""),
    Metric(MFU, "Model FLOP utilisation", style="percent"),
    Metric(PEAK_MEMORY, "Peak memory of a process", style="bytes", zero=""),
    Metric("nll_loss", "Likelihood term", "Of a token of the chosen answer, before its weight", unit="nats"),
    Metric("cpo/nll", "CPO likelihood term", "Before its weight", unit="nats"),
    Metric("kto/kl", "KTO reference point", "The step's constant", unit="nats", zero=""),
    Metric("sft/nll_per_token", "Loss of a token", "Mean over an example's completion", unit="nats"),
)
_BY_KEY = {metric.key: metric for metric in METRICS}

# Each place shows the first of its metrics that a run has.
_FIRST = (
    (CHOSEN_MINUS_REFERENCE, CHOSEN_LOGP),
    (REJECTED_REWARD, REJECTED_LOGP),
    (ACCURACY,),
    (MARGIN,),
    (LOSS,),
    (GRAD_NORM,),
    (PAIRS_PER_SECOND,),
)


def describe(key: str) -> Metric:
    """The known metric, or one that carries its key as its title."""
    return _BY_KEY.get(key) or Metric(key, key)


def arrange(names: Iterable[str]) -> tuple[list[Metric], list[Metric]]:
    """The metrics to draw first, in order, and the others: known ones in the table's order, then unknown ones."""
    keys = list(dict.fromkeys(name.removeprefix(VALIDATION) for name in names))
    first = [next((key for key in place if key in keys), None) for place in _FIRST]
    main = [describe(key) for key in first if key is not None]
    known = [metric for metric in METRICS if metric.key in keys and metric not in main]
    return main, known + [describe(key) for key in keys if key not in _BY_KEY]
