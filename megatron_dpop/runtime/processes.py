"""Process groups: from a launcher's environment to Megatron-Core's parallel state."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_dpop.config.schema import ParallelConfig
from megatron_dpop.runtime.beats import working_alone
from megatron_dpop.runtime.devices import on_gpu, prepare_device
from megatron_dpop.runtime.rank import Rank
from megatron_dpop.runtime.rendezvous import meet
from megatron_dpop.runtime.tensor_overlap import close_buffers
from megatron_dpop.runtime.threads import reserve_threads

LONGEST_WORK = timedelta(hours=12)


def initialize(parallel: ParallelConfig, *, seed: int, timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Joins all ranks and builds Megatron-Core's process groups; returns this rank's device.

    Must run before anything imports `megatron.core`.
    """
    rank = Rank.from_environment()
    gpu = on_gpu()
    device = prepare_device(rank.local_rank)
    _quieten()
    if not gpu:
        reserve_threads()
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=meet(rank, timeout),
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=timeout,
        )
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return device


@contextmanager
def first_rank_only() -> Iterator[bool]:
    """Yields whether this is the first rank. It works on, for hours if need be, and the others wait for its end.

    In any other collective they would wait no longer than its group's timeout.
    """
    group = dist.new_group(backend="gloo", timeout=LONGEST_WORK)
    with working_alone() if dist.get_rank() == 0 else nullcontext():
        yield dist.get_rank() == 0
    dist.barrier(group=group)
    dist.destroy_process_group(group)


def _quieten() -> None:
    """Silences what Megatron-Core and torch repeat on every rank: deprecations inside them, packages not needed."""
    warnings.filterwarnings("ignore", module="megatron|torch")
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    for name in ("megatron", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def shut_down() -> None:
    """Leaves the process groups, so that the launcher sees a clean end."""
    from megatron.core import parallel_state

    close_buffers()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
