"""A base with a PEFT adapter added, as a source under the family's own names: merged as rows are read."""

from functools import lru_cache
from pathlib import Path

from torch import Tensor

from checkpoint_convert.peft_folder import Adapted
from checkpoint_convert.tensors.merged import MATRICES_KEPT, read_fp32, stretches
from checkpoint_convert.tensors.source import TensorInfo, TensorSource
from checkpoint_convert.tensors.torch_dtypes import write_elements


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
        for start, count, part in stretches(info, rows, out):
            write_elements(self._rows(name, first + start, count), part, info.dtype, name)

    def files(self) -> list[Path]:
        return [self._config_file, *self._adapter.files(), *self._base.files()]

    def close(self) -> None:
        self._base.close()
        self._adapter.close()

    def _rows(self, name: str, first: int, rows: int) -> Tensor:
        if name in self._replaced:
            return read_fp32(self._adapter, self._replaced[name], first, rows)
        adapted = self._adapted[name]
        outputs = read_fp32(self._adapter, adapted.lora_b, first, rows)
        weight = read_fp32(self._base, name, first, rows)
        weight.addmm_(outputs, self._inputs(adapted.lora_a), alpha=adapted.scale)
        if adapted.magnitude is not None:
            magnitude = read_fp32(self._adapter, adapted.magnitude, first, rows)
            weight *= (magnitude.view(-1) / weight.norm(dim=1))[:, None]
        return weight

    def _read_inputs(self, name: str) -> Tensor:
        """A, fp32 [rank, inputs]."""
        return read_fp32(self._adapter, name, 0, self._adapter.tensors[name].shape[0])
