"""Lets unmodified Megatron-Core run on CPU tensors over gloo.

Megatron-Core names its device "cuda" in many places and asks `torch.cuda` for streams, events, memory counters and
random states. `install` gives each of those names the meaning it has on a machine without a GPU, and nothing else:
tensors that ask for a CUDA device are made on the CPU, streams and events do nothing, memory counters are zero.
It must run before anything of `megatron.core` is imported, since some modules ask for the device while importing.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_dpop.runtime.cpu_products import has_bf16_products, widen_bf16_products

CPU = torch.device("cpu")

# Where these are installed Megatron-Core takes their kernels, whatever the device: GPU kernels, for tensors on the CPU.
GPU_PACKAGES = ("transformer_engine", "transformer_engine_torch", "apex", "amp_C")


def _names_cuda(device: Any) -> bool:
    """True for "cuda", "cuda:0", torch.device("cuda") and bare ordinals (what `current_device` returns on a GPU)."""
    if isinstance(device, bool):
        return False
    return isinstance(device, int) or str(device).startswith("cuda")


class _CudaToCpu(TorchFunctionMode):
    """Rewrites `device="cuda"` arguments, `.cuda()` and CUDA type strings to their CPU meaning."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizer sorts parameters by "torch.cuda.FloatTensor" and its like.
            return func(*args).replace("torch.", "torch.cuda.")
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": CPU}
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        return func(*args, **kwargs)


class _Event:
    """A CUDA event's timing, on the host's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorded_seconds = 0.0

    def record(self, *_: Any) -> None:
        self.recorded_seconds = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        return (end.recorded_seconds - self.recorded_seconds) * 1e3

    def synchronize(self) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True


class _Stream:
    """A stream on which everything has already happened."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self, *_: Any) -> _Event:
        return _Event()


class _TypedTensor(type):
    """`torch.cuda.FloatTensor` and its like: callable, and usable in `isinstance`."""

    dtype: torch.dtype

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.dtype is cls.dtype

    def __call__(cls, data: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=cls.dtype)


_TYPED_TENSORS = {
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "DoubleTensor": torch.float64,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
    "ByteTensor": torch.uint8,
}

# What each name answers on a machine without a GPU.
_CONSTANTS: dict[str, Any] = {
    "is_available": False,
    "current_device": CPU,
    "device_count": 0,
    "get_device_capability": (9, 0),  # read only to choose among GPU kernels that are not used here
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "max_memory_reserved": 0,
    "memory_stats": {},
    "set_device": None,
    "synchronize": None,
    "empty_cache": None,
    "reset_peak_memory_stats": None,
}


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """`torch.compile` that compiles nothing: Megatron's fused kernels would ask for a C++ compiler on every machine."""
    return function if function is not None else lambda decorated: decorated


def _skipping_self_copies(collective: Any) -> Any:
    """The collective, but for a group of one rank whose result already lies where it belongs.

    Megatron's distributed optimizer reduces all gradients and gathers all weights in place at every step; gloo copies
    those buffers onto themselves where there is one data-parallel rank, which NCCL does not.
    """

    def wrapped(
        output: torch.Tensor, source: torch.Tensor, *args: Any, group: Any = None, async_op: bool = False, **kwargs: Any
    ) -> Any:
        in_place = output.data_ptr() == source.data_ptr() and output.numel() == source.numel()
        if in_place and not async_op and torch.distributed.get_world_size(group) == 1:
            return None
        return collective(output, source, *args, group=group, async_op=async_op, **kwargs)

    return wrapped


def _with_lists(all_to_all: Any) -> Any:
    """The collective with its splits as lists, which gloo wants; Megatron's experts give tensors, as NCCL takes."""

    def plain(splits: Any) -> Any:
        return splits.tolist() if isinstance(splits, torch.Tensor) else splits

    def wrapped(
        output: torch.Tensor, source: torch.Tensor, output_splits: Any = None, input_splits: Any = None, **options: Any
    ) -> Any:
        output_splits = options.pop("output_split_sizes", output_splits)
        input_splits = options.pop("input_split_sizes", input_splits)
        return all_to_all(output, source, plain(output_splits), plain(input_splits), **options)

    return wrapped


def _gathering_unequal_sizes(all_gather: Any) -> Any:
    """The collective for tensors whose first dimensions differ, which gloo refuses: as long as the longest of them."""

    def wrapped(outputs: list[torch.Tensor], source: torch.Tensor, group: Any = None, async_op: bool = False) -> Any:
        rows = [len(output) if output.dim() else 1 for output in outputs]
        if len(set(rows)) == 1:
            return all_gather(outputs, source, group=group, async_op=async_op)
        assert not async_op, "Megatron's experts wait for it"
        padded = [output.new_empty(max(rows), *output.shape[1:]) for output in outputs]
        all_gather(padded, _padded(source, max(rows)), group=group)
        for output, found in zip(outputs, padded, strict=True):
            output.copy_(found[: len(output)])
        return None

    return wrapped


def _scattering_unequal_sizes(reduce_scatter: Any) -> Any:
    """The same for sums: each rank's is summed at the length of the longest."""

    def wrapped(
        output: torch.Tensor, sources: list[torch.Tensor], *args: Any, group: Any = None, async_op: bool = False
    ) -> Any:
        rows = [len(source) if source.dim() else 1 for source in sources]
        if len(set(rows)) == 1:
            return reduce_scatter(output, sources, *args, group=group, async_op=async_op)
        assert not async_op, "Megatron's experts wait for it"
        padded = output.new_empty(max(rows), *output.shape[1:])
        reduce_scatter(padded, [_padded(source, max(rows)) for source in sources], *args, group=group)
        output.copy_(padded[: len(output)])
        return None

    return wrapped


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat((tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])))


def _always(result: Any) -> Callable[..., Any]:
    return lambda *_, **__: result


_installed = False


def installed() -> bool:
    return _installed


def install() -> None:
    """Installs the CPU meaning of the `torch.cuda` names, once per process."""
    global _installed
    if _installed:
        return
    _installed = True
    for name in GPU_PACKAGES:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    cuda: Any = torch.cuda
    for name, result in _CONSTANTS.items():
        setattr(cuda, name, _always(result))
    cuda.nvtx.range_push = _always(None)
    cuda.nvtx.range_pop = _always(None)
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.current_stream = cuda.default_stream = lambda *_: _Stream()
    cuda.stream = lambda _: contextlib.nullcontext()
    # Megatron keeps one CUDA random state per tensor-parallel role; here they are states of the CPU's generator.
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    cuda.default_generators = (torch.default_generator,)
    for name, dtype in _TYPED_TENSORS.items():
        setattr(cuda, name, _TypedTensor(name, (), {"dtype": dtype}))
    distributed: Any = torch.distributed
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        setattr(distributed, name, _skipping_self_copies(getattr(distributed, name)))
    distributed.all_to_all_single = _with_lists(distributed.all_to_all_single)
    distributed.all_gather = _gathering_unequal_sizes(distributed.all_gather)
    distributed.reduce_scatter = _scattering_unequal_sizes(distributed.reduce_scatter)
    torch.compile = _uncompiled  # type: ignore[assignment]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign]
    if not has_bf16_products():
        widen_bf16_products()
    _CudaToCpu().__enter__()
