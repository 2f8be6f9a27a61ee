"""PyTorch's dtypes by our names: apart, so that only what computes with tensors imports PyTorch."""

import torch

from dpop_base.errors import UserError

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_elements(values: torch.Tensor, out: memoryview, dtype: str, name: str) -> None:
    """Rounds `values` to `dtype` into `out`. Raises UserError where one of tensor `name` is beyond fp16's range."""
    target = torch.frombuffer(out, dtype=TORCH[dtype])
    target.copy_(values.reshape(-1))
    if dtype == "fp16" and bool((torch.isinf(target) & torch.isfinite(values.reshape(-1))).any()):
        raise UserError(f"{name}: holds values beyond the range of fp16; choose --dtype bf16 or fp32")
