"""Counts what collectives send, by the sizes of the tensors that they are given."""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARD_AND_WHOLE = (  # operations that are given each rank's share beside the whole
    "_allgather_base_",
    "_reduce_scatter_base_",
    "allgather_into_tensor_coalesced_",
    "reduce_scatter_tensor_coalesced_",
    "reduce_scatter_",
)
IN_PLACE = ("allreduce_", "allreduce_coalesced_")


class CollectiveCounter(TorchDispatchMode):
    """Calls by name, and bytes that this rank sends in rings: a ring of n ranks sends (n - 1) / n of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_bytes = 0.0
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1]
            self.calls[name] += 1
            self.sent_bytes += _sent(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _sent(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    sizes = [leaf.nbytes for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if name == "send":
        return sum(sizes)
    ranks = _ranks(args)
    if name == "allgather_":  # a list of outputs, then the input
        return sum(sizes[:-1]) * (ranks - 1) / ranks
    if name in SHARD_AND_WHOLE:
        return sum(sizes) * ranks / (ranks + 1) * (ranks - 1) / ranks
    if name == "alltoall_base_":  # the output, then the input, of which each rank is taken to be sent as much
        return sizes[1] * (ranks - 1) / ranks
    if name in IN_PLACE:
        return 2 * sum(sizes) * (ranks - 1) / ranks
    assert name in ("recv_", "broadcast_"), f"{name} is not counted yet"
    return 0.0


def _ranks(args: tuple[Any, ...]) -> int:
    groups = [argument for argument in args if isinstance(argument, torch.ScriptObject)]
    return dist.ProcessGroup.unbox(groups[0]).size()
