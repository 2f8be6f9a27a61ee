"""Tokens on disk or in memory: Arrow record batches, read as views without copying."""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from .tokenise import TokenizedRecord, common_prefix_tokens

SCHEMA = pyarrow.schema(
    [
        ("prompt", pyarrow.list_(pyarrow.int32())),
        ("completions", pyarrow.list_(pyarrow.list_(pyarrow.int32()))),
        ("preferred", pyarrow.list_(pyarrow.bool_())),
        ("common_prefix_tokens", pyarrow.int32()),
    ]
)


def record_batch(examples: Iterable[TokenizedRecord]) -> pyarrow.RecordBatch:
    listed = list(examples)
    completions = [completion for example in listed for completion in example.completions]
    counts = [len(example.completions) for example in listed]
    flags = np.array([flag for example in listed for flag in example.preferred], bool)
    bits = pyarrow.py_buffer(np.packbits(flags, bitorder="little"))
    return pyarrow.record_batch(
        [
            _lists([example.prompt for example in listed]),
            pyarrow.ListArray.from_arrays(_offsets(counts), _lists(completions)),
            pyarrow.ListArray.from_arrays(
                _offsets(counts), pyarrow.Array.from_buffers(pyarrow.bool_(), len(flags), [None, bits])
            ),
            _int32(np.array([common_prefix_tokens(example.completions) for example in listed], np.int32)),
        ],
        schema=SCHEMA,
    )


def _lists(arrays: list[np.ndarray]) -> pyarrow.ListArray:
    values = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
    return pyarrow.ListArray.from_arrays(_offsets([len(array) for array in arrays]), _int32(values))


def _offsets(lengths: list[int]) -> pyarrow.Array:
    return _int32(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


def _int32(values: np.ndarray) -> pyarrow.Array:
    """The values as they lie. Not by `pyarrow.array`, which imports pandas: half a second of every process's start."""
    return pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])


@dataclass(frozen=True)
class _Batch:
    """Views of one record batch."""

    prompt_offsets: np.ndarray  # int32 [examples + 1]
    prompt_values: np.ndarray  # int32 [tokens]
    completion_offsets: np.ndarray  # int32 [examples + 1], into token_offsets
    token_offsets: np.ndarray  # int32 [completions + 1]
    token_values: np.ndarray  # int32 [tokens]
    preferred: np.ndarray  # bool [completions]
    common_prefix_tokens: np.ndarray  # int32 [examples]

    @classmethod
    def of(cls, batch: pyarrow.RecordBatch) -> "_Batch":
        prompt, completions, preferred, prefix = batch.columns
        inner = completions.values
        return cls(
            # Not by `to_numpy`, which imports pandas.
            np.from_dlpack(prompt.offsets),
            np.from_dlpack(prompt.values),
            np.from_dlpack(completions.offsets),
            np.from_dlpack(inner.offsets),
            np.from_dlpack(inner.values),
            np.from_dlpack(preferred.values.cast(pyarrow.uint8())).astype(bool),
            np.from_dlpack(prefix),
        )


class StoredExamples:
    """Random access to the examples of one source; tokens stay in the mapped file until they are asked for."""

    def __init__(self, source: Path | pyarrow.Buffer, digest: str) -> None:
        """`digest`: of the bytes of `source`, for whoever wants to know whether tokens are the same as before."""
        self.digest = digest
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(source)) if isinstance(source, Path) else source)
        self._batches = [_Batch.of(reader.get_batch(index)) for index in range(reader.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum([len(b.common_prefix_tokens) for b in self._batches])]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[bool, ...], int]:
        """Returns (prompt, completions, preferred, tokens of the common prefix); tokens are int32 views."""
        position = bisect_right(self._starts, index) - 1
        batch, row = self._batches[position], index - self._starts[position]
        first, last = batch.completion_offsets[row], batch.completion_offsets[row + 1]
        offsets = batch.token_offsets[first : last + 1]
        prompt = batch.prompt_values[batch.prompt_offsets[row] : batch.prompt_offsets[row + 1]]
        completions = tuple(
            batch.token_values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        )
        return prompt, completions, tuple(batch.preferred[first:last].tolist()), int(batch.common_prefix_tokens[row])

    def first_of(self, tokens: Collection[int]) -> int | None:
        """The first example that has a completion of nothing but these tokens; None where there is none."""
        for batch, start in zip(self._batches, self._starts, strict=False):
            others = np.concatenate(([0], np.cumsum(~np.isin(batch.token_values, list(tokens)))))
            left = others[batch.token_offsets[1:]] - others[batch.token_offsets[:-1]]
            if not left.all():
                completion = int(np.argmin(left))
                return int(start + np.searchsorted(batch.completion_offsets, completion, side="right") - 1)
        return None

    def prompt_tokens(self) -> np.ndarray:
        return self._gather([np.diff(batch.prompt_offsets) for batch in self._batches])

    def common_prefix_tokens(self) -> np.ndarray:
        return self._gather([batch.common_prefix_tokens for batch in self._batches])

    def first_preferred(self) -> np.ndarray:
        """bool [examples]: whether each one's first completion is preferred."""
        parts = [batch.preferred[batch.completion_offsets[:-1]] for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, np.bool_)

    def completion_tokens(self, width: int) -> np.ndarray:
        """int32 [examples, width], zero where an example has fewer completions."""
        result = np.zeros((len(self), width), np.int32)
        for batch, start in zip(self._batches, self._starts, strict=False):
            counts = np.diff(batch.completion_offsets)
            rows = np.repeat(np.arange(len(counts)), counts)
            columns = np.arange(len(rows)) - np.repeat(batch.completion_offsets[:-1], counts)
            result[start + rows, columns] = np.diff(batch.token_offsets)
        return result

    def most_completions(self) -> int:
        return max((int(np.diff(batch.completion_offsets).max(initial=0)) for batch in self._batches), default=0)

    @staticmethod
    def _gather(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.empty(0, np.int32)
