"""Lets Transformer Engine, and what chooses it, take this machine's CPU for a GPU."""

import contextlib
import inspect
import os
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator
from typing import Any

import te_extension
import torch

HOPPER = types.SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, name="NVIDIA H100 80GB HBM3", total_memory=80 << 30
)


def install() -> None:
    from megatron_dpop.runtime import cpu_backend, devices

    cpu_backend.install()
    for name in cpu_backend.GPU_PACKAGES:
        del sys.modules[name]
    _pretend_hopper()
    _take_gloo()
    devices.on_gpu = lambda: True
    devices.prepare_device = lambda local_rank: cpu_backend.CPU
    _load_without_extension()
    _accept_tensors_of_the_cpu()


def _pretend_hopper() -> None:
    cuda: Any = torch.cuda
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cuda.is_available = lambda: True
    cuda.device_count = lambda: len(visible.split(",")) if visible else 2
    cuda.get_device_properties = lambda *_: HOPPER
    cuda.get_device_name = lambda *_: HOPPER.name
    cuda.is_current_stream_capturing = lambda: False
    tensor: Any = torch.Tensor
    tensor.cuda = tensor.pin_memory = lambda self, *_, **__: self
    empty = torch.empty
    torch.empty = lambda *sizes, **options: empty(*sizes, **{k: v for k, v in options.items() if k != "pin_memory"})
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None


def _take_gloo() -> None:
    """Gloo mixes up tensors of different types that are gathered as one, so each is gathered by itself."""
    dist: Any = torch.distributed
    begin = dist.init_process_group
    dist.init_process_group = lambda backend=None, **options: begin("gloo", **options)
    pending: list[list[Any]] = []

    @contextlib.contextmanager
    def one_by_one(*_: Any, **__: Any) -> Iterator[Any]:
        works: list[Any] = []
        pending.append(works)
        yield types.SimpleNamespace(wait=lambda: [work.wait() for work in works])
        pending.pop()

    def noted(collective: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            work = collective(*args, **options)
            if pending and work is not None:
                pending[-1].append(work)
            return work

        return call

    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
        setattr(dist, name, noted(getattr(dist, name)))
    dist._coalescing_manager = dist.distributed_c10d._coalescing_manager = one_by_one


def _load_without_extension() -> None:
    """Imports Transformer Engine with `te_extension` in place of its compiled parts, which need not be installed."""
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its word for: load no library
    sys.modules[te_extension.NAME] = te_extension.extension()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its PyTorch part cannot be imported yet
        import transformer_engine.common
    transformer_engine.common.load_framework_extension = lambda framework: None
    import transformer_engine.pytorch
    from transformer_engine.pytorch.module import base, layernorm_linear, linear

    for module in (base, layernorm_linear, linear):  # it is made in autograd's thread, where devices are not rewritten
        module.get_dummy_wgrad = lambda shape, dtype, zero=False: torch.zeros(shape, dtype=dtype)
    extensions: Any = transformer_engine.pytorch.cpp_extensions
    extensions.__getattr__ = te_extension.absent  # it took over the names that there were
    te_distributed: Any = transformer_engine.pytorch.distributed
    te_distributed._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    te_distributed._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _accept_tensors_of_the_cpu() -> None:
    from megatron.core.optimizer.cpu_offloading.hybrid_optimizer import HybridDeviceOptimizer
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    _rewrite(TransformerEngineBaseModule, "prepare_forward", ("not inp.is_cuda", "False"))
    _rewrite(
        HybridDeviceOptimizer,
        "_get_sub_optimizer_param_groups",
        ("offload_threshold and param.is_cuda", "offload_threshold"),
        ("if param.is_cuda]", "]"),
        ("if param.is_cuda:", "if not cpu_copy:"),
    )


def _rewrite(owner: type, method: str, *changes: tuple[str, str]) -> None:
    function = getattr(owner, method)
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert source.count(old) == 1, (method, old)
        source = source.replace(old, new)
    scope = dict(vars(sys.modules[owner.__module__]))
    exec(compile(source, inspect.getfile(function), "exec"), scope)
    setattr(owner, method, scope[method])
