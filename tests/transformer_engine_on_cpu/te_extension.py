"""Stands in for `transformer_engine_torch`, Transformer Engine's compiled extension: its enums, and our twins.

So Transformer Engine's own modules, which are Python, run where nothing of it was compiled.
"""

import enum
import types
from typing import Any

import te_casts
import te_kernels
from torch import Tensor

NAME = "transformer_engine_torch"

ENUMS = {
    "DType": {
        "kByte": 0,
        "kInt32": 2,
        "kFloat32": 4,
        "kFloat16": 5,
        "kBFloat16": 6,
        "kFloat8E4M3": 7,
        "kFloat8E5M2": 8,
        "kFloat4E2M1": 10,
    },
    "FP8FwdTensors": {
        f"GEMM{gemm}_{role}": 3 * gemm - 3 + at
        for gemm in (1, 2, 3)
        for at, role in enumerate(("INPUT", "WEIGHT", "OUTPUT"))
    },
    "FP8BwdTensors": {
        f"GRAD_{role}{gemm}": 2 * gemm - 2 + at for gemm in (1, 2, 3) for at, role in enumerate(("OUTPUT", "INPUT"))
    },
    "Float8BlockScaleTensorFormat": {"GEMM_READY": 0, "COMPACT": 1, "INVALID": 2},
    "CommOverlapType": {"RS": 0, "AG": 1},
    "NVTE_Fused_Attn_Backend": {"NVTE_No_Backend": -1, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2},
}


class _AnyMember(type):
    """Of an enum that only attention, experts or formats that we do not use read: every name is a member."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        number = len(vars(cls))
        setattr(cls, name, number)
        return number


UNUSED_ENUMS = (
    "NVTE_Bias_Type",
    "NVTE_Mask_Type",
    "NVTE_QKV_Format",
    "NVTE_QKV_Layout",
    "NVTE_Softmax_Type",
    "NVTEScalingMode",
    "NVTEQBHistogramMode",
    "NVTERoutingMapFormat",
    "CommOverlapAlgo",
)
UNUSED_CLASSES = ("CommOverlap", "CommOverlapCore", "CommOverlapHelper", "CommOverlapP2P")


class FP8TensorMeta:
    """Scales of delayed FP8."""

    scale: Tensor
    scale_inv: Tensor
    amax_history: Tensor


def extension() -> types.ModuleType:
    module: Any = types.ModuleType(NAME)
    for name, members in ENUMS.items():
        setattr(module, name, enum.IntEnum(name, members))
    for name in UNUSED_ENUMS:
        setattr(module, name, _AnyMember(name, (), {}))
    for name in UNUSED_CLASSES:
        setattr(module, name, type(name, (), {}))
    module.FP8TensorMeta = FP8TensorMeta
    for name, twin in {**te_kernels.TWINS, **te_casts.TWINS}.items():
        setattr(module, name, twin)
    module.__getattr__ = absent
    return module


def absent(name: str) -> Any:
    """Of a function without a twin; a table may name it, nothing may call it."""
    if name.startswith("__"):
        raise AttributeError(name)

    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{NAME}.{name} has no twin in tests/transformer_engine_on_cpu")

    return call
