"""Counts what is allocated at once, by following every tensor that an operation makes until nothing holds it."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationCounter(TorchDispatchMode):
    """Bytes of the live storages that operations inside the mode made; `peak_bytes` is the most at any time.

    `made_bytes` and `made` count all of them.

    Unlike the profiler it does not lose what another thread frees, and gloo's threads do. What an operation allocates
    and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0
        self.peak_bytes = 0
        self.made_bytes = 0
        self.made = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        # The weak reference keeps the address from being used again.
        self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes += storage.nbytes()
        self.made_bytes += storage.nbytes()
        self.made += 1
        if self.bytes > self.peak_bytes:
            self._forget_dead()
            self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _forget_dead(self) -> None:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.bytes = sum(size for _, size in self.alive.values())
