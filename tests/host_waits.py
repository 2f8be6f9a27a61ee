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


# A copy of pageable memory waits as well; `megatron_dpop.runtime.devices.to_device` copies pinned memory, and on the
# CPU calls neither.
MAKING = {torch.tensor: "tensor(device=)", torch.as_tensor: "as_tensor(device=)"}


def _names_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"))


class HostWaitCounter(TorchFunctionMode):
    """How often each of `WAITING` was called, by name, and tensors were made or moved onto a device from the host.

    Indexing with a mask waits too, and is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WAITING:
            self.counts[WAITING[func]] += 1
        device = (kwargs or {}).get("device")
        if func in MAKING and device is not None:
            self.counts[MAKING[func]] += 1
        if func is torch.Tensor.to and (_names_device(device) or any(map(_names_device, args[1:]))):
            self.counts["to(device)"] += 1
        return func(*args, **(kwargs or {}))
