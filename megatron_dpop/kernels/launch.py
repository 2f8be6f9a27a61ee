"""Where Triton kernels are launched, and the only place: what counts launches counts them here."""

from collections.abc import Sequence
from typing import Any


def launch(kernel: Any, grid: Sequence[int], *args: Any, **meta: Any) -> None:
    """Runs `kernel` once for every point of the grid; an empty grid is no launch."""
    if all(grid):
        kernel[tuple(grid)](*args, **meta)
