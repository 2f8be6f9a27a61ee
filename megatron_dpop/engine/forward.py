"""One pass of Megatron's pipeline schedule over a step's rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_dpop.engine.batches import RowBatch
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.models.scoring import score_row
from megatron_dpop.rows.row import Row

# (row, log-probabilities) -> (loss summed over examples, what the caller collects of a row)
type RowLoss[Collected] = Callable[[RowBatch, Tensor], tuple[Tensor, Collected]]


@dataclass(frozen=True)
class RowLogps:
    """Log-probabilities of a row, as `score` gave them: of its sequences or of its tokens."""

    row: Row
    logps: Tensor  # fp32


def run_rows[Collected](
    engine: ModelEngine,
    rows: list[RowBatch],
    row_loss: RowLoss[Collected],
    *,
    forward_only: bool,
    score: Callable[..., Tensor] = score_row,
    examples: int = 1,
) -> list[Collected]:
    """Runs forward (and backward) over the rows; returns `row_loss`'s second value by row, on the last stage only.

    `score` says what log-probabilities `row_loss` gets: of completions, fp32 [sequences], or with `score_tokens` of
    their tokens, fp32 [members].

    The gradient left in the DDP buffers is that of all ranks' losses over `examples`, the number of them in the step,
    which the host knows: no pass over the gradients has to divide them.
    """
    for adapter in engine.adapters:
        adapter.train(not forward_only)  # dropout
    with torch.set_grad_enabled(not forward_only):  # Megatron's schedules leave this to their caller
        return get_forward_backward_func()(
            forward_step_func=partial(_forward_step, row_loss=row_loss, score=score, examples=examples),
            data_iterator=[iter(rows) for _ in engine.chunks],
            model=engine.chunks,
            num_microbatches=len(rows),
            seq_length=rows[0].row_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
        )


def _forward_step[Collected](
    rows: Iterator[RowBatch],
    model: torch.nn.Module,
    *,
    row_loss: RowLoss[Collected],
    score: Callable[..., Tensor],
    examples: int,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Collected]]]:
    row = next(rows)
    output = model(
        row.tokens,
        row.layout.positions[None],
        None,
        packed_seq_params=row.layout,
        output_processor=score,
        output_processor_context=row.scores,
    )

    def loss(logps: Tensor) -> tuple[Tensor, Tensor, Collected]:
        total, collected = row_loss(row, logps)
        # The schedules ask for a count, which `engine` lets nobody divide by.
        return total / examples, torch.ones((), dtype=torch.int, device=logps.device), collected

    return output, loss


def logps_only(row: RowBatch, logps: Tensor) -> tuple[Tensor, RowLogps]:
    """A `RowLoss` that only collects the log-probabilities, for a pass without a loss."""
    return logps.sum(), RowLogps(row.row, logps.detach())
