"""Runs code on tensors that say they are on a GPU and hold nothing, and counts what it would launch there."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_dpop.kernels import gate, logits, rotary

# They move no bytes: other names for the same memory, or memory alone.
FREE = (
    "view",
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "transpose",
    "t.default",
    "select.int",
    "slice",
    "split",
    "squeeze",
    "unbind",
    "empty",
    "_assert_async",
    "prim",
    "promote_types",
)


@dataclass
class Launches:
    """By operation, and the bytes that each reads and writes."""

    counts: Counter[str] = field(default_factory=Counter)
    moved_bytes: Counter[str] = field(default_factory=Counter)

    @property
    def number(self) -> int:
        return sum(self.counts.values())

    def add(self, name: str, tensors: list[Any]) -> None:
        self.counts[name] += 1
        self.moved_bytes[name] += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class _Dispatched(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(f".{word}" in f".{func}".replace(".aten.", ".") for word in FREE):
            seen = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
            self.launches.add(str(func), list(seen.values()))
        return result


class Context:
    """An autograd function's `ctx`: autograd itself would ask for a real device."""

    def __init__(self) -> None:
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad = (True, True)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_: Any) -> None:
        pass


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within it, tensors may be made on "cuda"."""
    with FakeTensorMode(), mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)):
        yield


@contextmanager
def counted() -> Iterator[Launches]:
    """Counts torch's operations and our kernels' launches, which do not happen."""
    found = Launches()

    def launch(kernel: Any, grid: Any, *args: Any, **_: Any) -> None:
        found.add(f"triton.{kernel.fn.__module__.rsplit('.', 1)[-1]}.{kernel.fn.__name__}", list(args))

    with (
        mock.patch.object(gate, "launch", launch),
        mock.patch.object(logits, "launch", launch),
        mock.patch.object(rotary, "launch", launch),
        _Dispatched(found),
    ):
        yield found


def both_ways(function: type[torch.autograd.Function], *inputs: Any, outputs: int = 1) -> tuple[Launches, Launches]:
    """What the function launches forward and, for the gradients of its first `outputs` results, backward."""
    context: Any = Context()
    with counted() as forward:
        results = function.forward(context, *inputs)
    results = results if isinstance(results, tuple) else (results,)
    grads = [torch.ones_like(result) for result in results[:outputs]]
    with counted() as backward:
        function.backward(context, *grads)
    return forward, backward
