"""Counts the places where the host waits for a value of the device, as `.item()` and its relatives do."""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# On a GPU each of them stops the host until all that was launched before has run.
WAITING = {
    getattr(torch.Tensor, name): name
    for name in (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__contains__",
    )
}


class HostWaitCounter(TorchFunctionMode):
    """How often each of `WAITING` was called, by name. Indexing with a mask waits too, and is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WAITING:
            self.counts[WAITING[func]] += 1
        return func(*args, **(kwargs or {}))
