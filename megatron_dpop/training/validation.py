"""The loss and its metrics on held-out data."""

import math
from functools import partial

import torch

from dpop_base.metric_names import DRIFT, LOSS, VALIDATION
from megatron_dpop.engine.batches import RowSource, StepData
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.engine.non_finite import raise_non_finite
from megatron_dpop.training.kl import step_kl
from megatron_dpop.training.metrics import RowMetrics, StepMetrics


def validation_steps(source: RowSource) -> int:
    return -(-len(source) // source.batch)


def validate(
    data: StepData, metrics: StepMetrics, step: int, *, progress: float = 0.0, policy_is_reference: bool = False
) -> dict[str, float]:
    """Means over the whole dataset, named `validation/...`, of the weights that have taken `step` steps.

    Where the policy is the reference, its log-probabilities are the cached ones and no forward pass is needed.
    Raises NonFiniteError, on all ranks, where a loss is not a finite number.
    """
    engine = data.source.engine
    when = f"validation at step {step}"
    collected: list[RowMetrics] = []
    for batch in range(validation_steps(data.source)):
        rows = data.rows(batch)
        if policy_is_reference:
            kl = torch.zeros((), device=engine.device) if data.mismatched else None
            collected += [metrics.row_loss(row, row.reference_tensor(), kl=kl, progress=progress)[1] for row in rows]
        else:
            row_loss = partial(metrics.row_loss, kl=step_kl(data, batch, when=when), progress=progress)
            collected += run_rows(engine, rows, row_loss, forward_only=True)
            metrics.see_routes(rows, data.routes, data.source)
    means = metrics.reduce(collected)
    if not math.isfinite(means[LOSS]):
        raise_non_finite(engine, collected, data.source.dataset, f"{when}: the loss is not a finite number")
    means.pop(DRIFT, None)
    return {VALIDATION + name: value for name, value in means.items()}
