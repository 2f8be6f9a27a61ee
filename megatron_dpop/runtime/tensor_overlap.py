"""Transformer Engine's buffers in which tensor-parallel communication runs beside the products that it feeds.

Megatron-Core sets the layers' options (`tp_comm_overlap`); the buffers ("userbuffers") are its caller's to open. They
hold tensors of one shape, so that every row of a run must have one length.
"""

import sys


def open_buffers(*, tokens: int, hidden: int, tensor: int, fp8: bool, bf16: bool) -> None:
    """Opens them for layers of [tokens, hidden], once a process; before the layers are built, on every rank at once.

    fp8, bf16: in which precisions layers multiply.
    """
    from transformer_engine.pytorch.module import base

    if base.is_ub_initialized():
        return
    modes = base.UserBufferQuantizationMode
    base.initialize_ub(
        shape=[tokens, hidden],
        tp_size=tensor,
        quantization_modes=[mode for mode, used in ((modes.FP8, fp8), (modes.NONE, bf16)) if used],
        ub_cfgs={},
        bootstrap_backend="nccl",
    )


def close_buffers() -> None:
    """Closes the buffers before the process groups go that they were opened with; nothing where none were opened."""
    base = sys.modules.get("transformer_engine.pytorch.module.base")
    if base is not None and base.is_ub_initialized():
        base.destroy_ub()
