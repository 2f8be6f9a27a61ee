"""One training step: rows in, weights updated, metrics out."""

import math
import time
from functools import partial
from typing import Any

import torch

from dpop_base.metric_names import DRIFT, GRAD_NORM, LOSS
from megatron_dpop.engine.batches import RowSource, StepData
from megatron_dpop.engine.engine import Engine
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.engine.non_finite import NonFiniteError, raise_non_finite
from megatron_dpop.models.lora import seed_dropout
from megatron_dpop.training.kl import step_kl
from megatron_dpop.training.metrics import StepMetrics
from megatron_dpop.training.reruns import Reruns
from megatron_dpop.training.timing import speed_metrics


def train_step(
    engine: Engine, data: StepData, metrics: StepMetrics, reruns: Reruns, step: int, *, progress: float = 0.0
) -> dict[str, Any]:
    """Trains on one step's examples; returns its metrics, measured before the update.

    `progress` is the share of the run's steps that were taken, for losses with a schedule.

    Raises NonFiniteError, on all ranks and before any weight is touched, where a loss is not a finite number.
    """
    started = time.perf_counter()
    source = data.source
    examples = len(source.examples_of_step(step))
    for _ in reruns.attempts():
        metrics.clock.begin()
        engine.zero_gradients()
        seed_dropout(engine.adapters, engine.groups, seed=source.seed, step=step)
        row_loss = partial(metrics.row_loss, kl=step_kl(data, step, when=f"step {step}"), progress=progress)
        rows = data.rows(step)
        collected = run_rows(engine, rows, row_loss, forward_only=False, examples=examples)
        metrics.see_routes(rows, data.routes, source)
        values = metrics.reduce(collected)
        reruns.judge(values[LOSS])
    if not math.isfinite(values[LOSS]):
        raise_non_finite(engine, collected, source.dataset, f"step {step}: the loss is not a finite number")
    learning_rate = engine.optimizer.param_groups[0]["lr"]
    _, norm, _ = engine.optimizer.step()
    grad_norm = float(norm)  # with fused kernels it is a tensor on the device
    if not math.isfinite(grad_norm):
        raise NonFiniteError(f"step {step}: the gradient's norm is {grad_norm}; the weights of this step are lost")
    engine.scheduler.step(increment=1)
    if step > 0:
        values.pop(DRIFT, None)  # policy and reference are the same weights at step 0 alone
    seconds = time.perf_counter() - started
    return {
        "step": step,
        **values,
        GRAD_NORM: grad_norm,
        "learning_rate": learning_rate,
        **data_metrics(source, step),
        **speed_metrics(engine.architecture, engine.lora, source, step, seconds, torch.distributed.get_world_size()),
    }


def data_metrics(source: RowSource, step: int) -> dict[str, float]:
    """What the step's rows hold, from lengths alone."""
    plan = source.plan(step)
    examples = source.examples_of_step(step)
    used = int(source.shapes.row_tokens[examples].sum())
    unshared = int(source.unshared.row_tokens[examples].sum())
    return {
        "data/pad_fraction": 1 - used / (len(plan.rows) * plan.row_tokens),
        "data/shared_fraction": 1 - used / unshared,
        "data/consumed_pairs": (step + 1) * source.batch,
    }
