"""Starts the ranks that a layout needs on this machine, where no launcher has; and keeps their exit code."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from checkpoint_convert.errors import UserError
from megatron_dpop.runtime import exits
from megatron_dpop.runtime.stop import SIGNALS

# The ranks get a signal from us, finish their step and save; whoever sent it may end that sooner, with SIGKILL.
SECONDS_TO_SAVE = 1800
HANDED_ON = ",".join(["SIGINT", "SIGHUP", "SIGQUIT", *(number.name for number in SIGNALS)])

# Host memory, read when a process starts: a step on the CPU allocates and frees gigabytes, and up to a quarter of its
# time would go to the kernel handing out 4 KiB pages. Huge pages for large tensors; freed small ones stay with glibc.
ALLOCATOR_SETTINGS = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # bytes, the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),  # bytes
}


def local_ranks(model_parallel: int) -> int:
    """Ranks to start here: on the CPU one model replica, on GPUs as many replicas as there are GPUs for."""
    from megatron_dpop.runtime.devices import on_gpu

    if not on_gpu():
        return model_parallel
    import torch

    gpus = torch.cuda.device_count()
    if gpus < model_parallel:
        raise UserError(
            f"parallel: tensor x pipeline x context is {model_parallel}, but this machine has {gpus} GPUs; "
            "use a smaller layout, or torchrun over several nodes"
        )
    return gpus // model_parallel * model_parallel


def run_ranks(arguments: Sequence[str], ranks: int) -> int:
    """Runs `python -m megatron_dpop ARGUMENTS` on each of `ranks` local processes; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    for name, value in ALLOCATOR_SETTINGS.items():
        os.environ.setdefault(name, value)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=f"megatron-dpop-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=HANDED_ON,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    words = [*_search_options(), "-m", "megatron_dpop", *arguments]
    return exit_code_of(lambda: elastic_launch(config, sys.executable)(*words))


def _search_options() -> list[str]:
    """Python's words that let ranks import what this process imports: `-m` alone looks in the current folder first,
    where another checkout of this package may lie."""
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]


def exit_code_of(launch: Callable[[], object]) -> int:
    """Runs torchelastic's `launch` and returns the exit code of the first rank that failed (`runtime.exits`), or 0.

    The first rank that fails ends the others; its error, which it leaves in the file that torchelastic names, is
    printed once. A signal that asks for a stop is handed on to the ranks, which save and leave.
    """
    logging.disable(logging.CRITICAL)  # what torchelastic says of its processes at every turn
    os.environ[exits.LAUNCHED_VARIABLE] = "1"
    try:
        launch()
    except SignalException as signal:
        return exits.STOPPED if signal.sigval in SIGNALS else 128 + signal.sigval
    except ChildFailedError as error:
        return _explain(error)
    return 0


def _explain(error: ChildFailedError) -> int:
    _, failure = error.get_first_failure()
    if failure.exitcode == exits.STOPPED:
        return exits.STOPPED  # rank 0 has said it
    message = failure.message if isinstance(failure.message, str) else failure.message.get("message", "")
    if failure.exitcode > 0 and not os.path.isfile(failure.error_file):
        # Nothing of ours ended it; torchelastic would say where to read of its decorator.
        message = f"rank {failure.local_rank} ended with exit code {failure.exitcode}; what it printed stands above"
    kind = {exits.BAD_INPUT: "error", exits.UNHEALTHY: "unhealthy"}.get(failure.exitcode)
    print(f"megatron-dpop: {kind or 'failed'}: {message}", file=sys.stderr)
    return failure.exitcode if kind else exits.FAILED
