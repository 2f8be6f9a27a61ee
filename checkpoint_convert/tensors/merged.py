"""A frozen base with its LoRA adapters added, as a source: merged a stretch of rows at a time, as they are read."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_convert.rules.adapters import adapter_names
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo, TensorSource
from checkpoint_convert.tensors.torch_dtypes import TORCH, write_elements

STRETCH_BYTES = 4 << 20  # of fp32 rows: what merging holds beyond the rows themselves
MATRICES_KEPT = 8


class Merged:
    """
    `base` (Megatron's names) where every weight that has adapters is W + scale * B A: computed in fp32 and rounded
    once, to `adapted_dtype` or, where that is None, to the dtype in which the base stores W.
    """

    def __init__(
        self,
        base: TensorSource,
        adapters: TensorSource,
        *,
        scale: float,
        scale_file: Path,  # that `scale` was read from
        adapted_dtype: str | None = None,
    ) -> None:
        self._base, self._adapters, self._scale, self._scale_file = base, adapters, scale, scale_file
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in base.tensors.items():
            adapted = adapter_names(name)[0] in adapters.tensors
            dtype = adapted_dtype if adapted and adapted_dtype else info.dtype
            self.tensors[name] = TensorInfo(info.shape, dtype)
        self._inputs = lru_cache(MATRICES_KEPT)(self._read_inputs)  # a weight is read in many ranges

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        lora_a, lora_b = adapter_names(name)
        if lora_a not in self._adapters.tensors:
            self._base.read_rows(name, first, rows, out)
            return
        inputs = self._inputs(lora_a)
        dtype = self.tensors[name].dtype
        for start, count, part in stretches(self.tensors[name], rows, out):
            outputs = read_fp32(self._adapters, lora_b, first + start, count)
            weight = read_fp32(self._base, name, first + start, count)
            write_elements(weight.addmm_(outputs, inputs, alpha=self._scale), part, dtype, name)

    def files(self) -> list[Path]:
        return [self._scale_file, *self._adapters.files(), *self._base.files()]

    def close(self) -> None:
        self._base.close()
        self._adapters.close()

    def _read_inputs(self, name: str) -> Tensor:
        """A, fp32 [rank, inputs]."""
        return read_fp32(self._adapters, name, 0, self._adapters.tensors[name].shape[0])


def stretches(info: TensorInfo, rows: int, out: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(first row, rows, their bytes in `out`), of at most `STRETCH_BYTES` in fp32."""
    columns = info.row_bytes // ITEM_BYTES[info.dtype]
    step = max(1, STRETCH_BYTES // (columns * ITEM_BYTES["fp32"]))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        yield start, count, out[start * info.row_bytes : (start + count) * info.row_bytes]


def read_fp32(source: TensorSource, name: str, first: int, rows: int) -> Tensor:
    """Returns rows of a tensor, fp32 [rows, ...]."""
    info = source.tensors[name]
    data = bytearray(rows * info.row_bytes)
    source.read_rows(name, first, rows, memoryview(data))
    return torch.frombuffer(data, dtype=TORCH[info.dtype]).view(rows, *info.shape[1:]).float()
