"""Scales of delayed FP8 where no training step has made them yet.

Transformer Engine derives them from the largest values of earlier passes, but moves them on in passes with gradients
alone. Without help a reference would be computed with scales of 1, which clip what is above 448 and leave most weights
few bits, and the policy beside it with true ones.
"""

from megatron_dpop.engine.batches import RowSource
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.engine.forward import logps_only, run_rows

# In the first pass scales of 1 distort what later layers see.
PASSES = 2


def warm_scales(engine: ModelEngine, source: RowSource, step: int) -> None:
    """Makes scales from a step's rows, before the first pass whose results count. Nothing without delayed FP8."""
    if not _delayed(engine):
        return
    rows = source.rows(step, None)
    for _ in range(PASSES):
        run_rows(engine, rows, logps_only, forward_only=True)
        move_scales(engine)


def move_scales(engine: ModelEngine) -> None:
    """After a pass without gradients: lets the next one's scales follow it. Nothing without delayed FP8."""
    if _delayed(engine):
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=True)


def _delayed(engine: ModelEngine) -> bool:
    return engine.config.fp8 is not None and engine.config.fp8_recipe == "delayed"
