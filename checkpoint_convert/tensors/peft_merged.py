"""A base with a PEFT adapter added, as a source under the family's own names: merged as rows are read."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_convert.peft_folder import Adapted
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorInfo, TensorSource
from checkpoint_convert.tensors.torch_dtypes import TORCH, write_elements

STRETCH_BYTES = 4 << 20  # of fp32 rows: what merging holds beyond the rows themselves
MATRICES_KEPT = 8


class PeftMerged:
    """
    `base` where weights in `adapted` are W + scale * B A (with DoRA, each row then of its magnitude), computed in fp32
    and rounded once, and tensors in `replaced` are the adapter's own, under the names given there.
    """

    def __init__(
        self,
        base: TensorSource,
        adapter: TensorSource,
        *,
        adapted: dict[str, Adapted],
        replaced: dict[str, str],
        config_file: Path,
        adapted_dtype: str | None = None,
    ) -> None:
        self._base, self._adapter, self._config_file = base, adapter, config_file
        self._adapted, self._replaced = adapted, replaced
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in base.tensors.items():
            dtype = adapted_dtype if adapted_dtype and (name in adapted or name in replaced) else info.dtype
            self.tensors[name] = TensorInfo(info.shape, dtype)
        self._inputs = lru_cache(MATRICES_KEPT)(self._read_inputs)

    def read_rows(self, name: str, first: int, rows: int, out: memoryview) -> None:
        info = self.tensors[name]
        if name not in self._adapted and name not in self._replaced:
            self._base.read_rows(name, first, rows, out)
            return
        columns = info.row_bytes // ITEM_BYTES[info.dtype]
        step = max(1, STRETCH_BYTES // (columns * ITEM_BYTES["fp32"]))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            part = out[start * info.row_bytes : (start + count) * info.row_bytes]
            write_elements(self._rows(name, first + start, count), part, info.dtype, name)

    def files(self) -> list[Path]:
        return [self._config_file, *self._adapter.files(), *self._base.files()]

    def close(self) -> None:
        self._base.close()
        self._adapter.close()

    def _rows(self, name: str, first: int, rows: int) -> Tensor:
        if name in self._replaced:
            return _read(self._adapter, self._replaced[name], first, rows)
        adapted = self._adapted[name]
        outputs = _read(self._adapter, adapted.lora_b, first, rows)
        weight = _read(self._base, name, first, rows)
        weight.addmm_(outputs, self._inputs(adapted.lora_a), alpha=adapted.scale)
        if adapted.magnitude is not None:
            magnitude = _read(self._adapter, adapted.magnitude, first, rows)
            weight *= (magnitude.view(-1) / weight.norm(dim=1))[:, None]
        return weight

    def _read_inputs(self, name: str) -> Tensor:
        """A, fp32 [rank, inputs]."""
        return _read(self._adapter, name, 0, self._adapter.tensors[name].shape[0])


def _read(source: TensorSource, name: str, first: int, rows: int) -> Tensor:
    """fp32 [rows, ...]."""
    info = source.tensors[name]
    data = bytearray(rows * info.row_bytes)
    source.read_rows(name, first, rows, memoryview(data))
    return torch.frombuffer(data, dtype=TORCH[info.dtype]).view(rows, *info.shape[1:]).float()
