"""docs/reference/metrics.md: the names in metrics.jsonl, from the report's catalogue and the losses themselves."""

from dpop_base.metric_names import DRIFT, ROUTE_AGREEMENT
from megatron_dpop.losses.metric_names import metric_names
from megatron_dpop.losses.registry import REGISTRY, make_loss
from megatron_dpop.report.catalogue import METRICS, Metric

INTRODUCTION = """# Metrics

`metrics.jsonl` in a run's folder holds one JSON object a step. Its values were measured before the step's update: those
of step 0 are the starting model's. TensorBoard gets the same names. Validation repeats the loss's metrics under
`validation/`; with several training files each has its own under `source/NAME/`. `perf/*`, `data/*`, `grad_norm` and
`learning_rate` are the step's; all others are means over the step's examples on all ranks, of the examples that have
such a value. A weighted sum of losses also has `loss/NAME`, each term before its weight.

| name | | unit | losses |
| --- | --- | --- | --- |
"""


def metrics_page() -> str:
    by_loss = {name: metric_names(make_loss({"name": name})) for name in REGISTRY}
    known = {metric.key: metric for metric in METRICS}
    of_losses = (name for names in by_loss.values() for name in names)
    rows = (_row(known.get(name) or Metric(name, ""), by_loss) for name in dict.fromkeys([*known, *of_losses]))
    return INTRODUCTION + "\n".join(rows) + "\n"


def _row(metric: Metric, by_loss: dict[str, list[str]]) -> str:
    losses = [name for name, names in by_loss.items() if metric.key in names]
    if metric.key in (DRIFT, ROUTE_AGREEMENT):
        losses = [name for name, definition in REGISTRY.items() if definition.needs_reference]
    unit = {"percent": "share of 1", "bytes": "bytes"}.get(metric.style, metric.unit)
    text = ". ".join(part.rstrip(".") for part in (metric.title, metric.note) if part)
    shown = "all" if not losses or len(losses) == len(REGISTRY) else ", ".join(losses)
    return f"| `{metric.key}` | {text} | {unit} | {shown} |"
