"""Two tensors read side by side, a bounded stretch of rows at a time."""

from collections.abc import Iterator

from checkpoint_convert.tensors.source import TensorSource

STRETCH_BYTES = 32 << 20


def same_elements(source: TensorSource, name: str, other: str) -> bool:
    """True where two tensors of one source hold the same bits."""
    if source.tensors[name] != source.tensors[other]:
        return False
    return all(bytes(a) == bytes(b) for a, b, _ in stretches(source, name, source, other))


def stretches(a: TensorSource, name: str, b: TensorSource, other: str) -> Iterator[tuple[memoryview, memoryview, int]]:
    """Bytes of both, and the row that they begin at; buffers are used again for the next stretch."""
    info, other_info = a.tensors[name], b.tensors[other]
    step = max(1, STRETCH_BYTES // max(1, info.row_bytes, other_info.row_bytes))
    step = min(step, info.shape[0])
    one, two = bytearray(step * info.row_bytes), bytearray(step * other_info.row_bytes)
    for first in range(0, info.shape[0], step):
        rows = min(step, info.shape[0] - first)
        x, y = memoryview(one)[: rows * info.row_bytes], memoryview(two)[: rows * other_info.row_bytes]
        a.read_rows(name, first, rows, x)
        b.read_rows(other, first, rows, y)
        yield x, y, first
