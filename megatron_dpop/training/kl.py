"""KTO's reference point: the step's estimate of the divergence between policy and reference."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_dpop.engine.batches import RowBatch, StepData
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.engine.non_finite import non_finite, stop
from megatron_dpop.losses.kto import kl_estimate


def step_kl(data: StepData, step: int, *, when: str) -> Tensor | None:
    """The KL term of a step, the same scalar on every rank, from a forward-only pass over its mismatched completions.

    None for losses without one. Raises NonFiniteError on all ranks, its message starting with `when`. Every rank must
    call it.
    """
    if data.mismatched is None:
        return None
    engine = data.source.engine
    collected = run_rows(engine, data.mismatched.rows(step), _log_ratios, forward_only=True)
    counted = [row["ratios"] for row in collected] if engine.reports else []
    kl = kl_estimate(torch.cat([torch.zeros(0, device=engine.device), *counted]), dist.group.WORLD)
    if not torch.isfinite(kl):
        what = "KTO's KL estimate, from prompts with other prompts' completions, is not a finite number"
        stop(engine, collected, data.source.dataset, f"{when}: {what}")
    return kl


def _log_ratios(row: RowBatch, logps: Tensor) -> tuple[Tensor, dict[str, Any]]:
    ratios = (logps - row.reference_tensor()).detach()
    return logps.sum(), {"ratios": ratios, **non_finite(row, ratios)}
