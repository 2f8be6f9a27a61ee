"""Starts the ranks that a layout needs on this machine, where no launcher has; and keeps their exit code."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from dpop_base.errors import UserError
from dpop_base.files import write_json
from megatron_dpop.runtime import exits
from megatron_dpop.runtime.local_ranks import LocalRanks, Logs, Placement
from megatron_dpop.runtime.stop import SIGNALS
from megatron_dpop.runtime.verdict import verdict

# Host memory, read when a process starts: a step on the CPU allocates and frees gigabytes, and up to a quarter of its
# time would go to the kernel handing out 4 KiB pages. Huge pages for large tensors; freed small ones stay with glibc.
ALLOCATOR_SETTINGS = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # bytes, the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),  # bytes
}


def local_ranks(fewest: int) -> int:
    """Ranks to start here, a multiple of `fewest`: on the CPU just so many, on GPUs as many as there are GPUs for."""
    from megatron_dpop.runtime.devices import on_gpu

    if not on_gpu():
        return fewest
    import torch

    gpus = torch.cuda.device_count()
    if gpus < fewest:
        raise UserError(
            f"parallel: the layout needs {fewest} ranks, but this machine has {gpus} GPUs; "
            "use a smaller layout, or torchrun over several nodes"
        )
    return gpus // fewest * fewest


def run_ranks(arguments: Sequence[str], ranks: int, *, module: str = "megatron_dpop") -> int:
    """Runs `python -m MODULE ARGUMENTS` on each of `ranks` local processes; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    for name, value in ALLOCATOR_SETTINGS.items():
        os.environ.setdefault(name, value)
    return run_processes([*_search_options(), "-m", module, *arguments], Placement(ranks))


def _search_options() -> list[str]:
    """Python's words that let ranks import what this process imports: `-m` alone looks in the current folder first,
    where another checkout of this package may lie."""
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]


def run_processes(words: Sequence[str], placement: Placement, logs: Logs | None = None) -> int:
    """Runs `python WORDS` as each rank of this node; returns the exit code of `runtime.exits` that they come to.

    The first rank that fails ends the others, and its reason is printed once. A signal that asks for a stop is handed
    on to the ranks, which save and leave; Ctrl-C is one, and a second Ctrl-C ends all at once.
    """
    ranks = LocalRanks(words, placement, logs)
    with _signals_for(ranks) as asked, ranks.started():
        ranks.wait()
    said = ranks.said()
    if asked.at_once:
        _correct_heartbeat(said, "interrupted", "ended at once by a second signal, before it had saved")
        print("megatron-dpop: ended at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return asked.end_as(signal.SIGINT)
    code, message = verdict(ranks.ends, said, stop_asked=asked.stop)
    if message is not None:
        kind = {exits.BAD_INPUT: "error: ", exits.UNHEALTHY: "unhealthy: ", exits.STOPPED: ""}.get(code, "failed: ")
        print(f"megatron-dpop: {kind}{message}", file=sys.stderr, flush=True)
    if code == exits.FAILED:
        _correct_heartbeat(said, "failed", message or "")
    return code


class _Asked:
    """What signals have asked of this launcher."""

    def __init__(self, ranks: LocalRanks) -> None:
        self._ranks = ranks
        self.stop = self.at_once = False

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """Hands a signal on to the ranks, which get some from its sender too: SIGUSR1 as it is, others as SIGTERM."""
        self.stop = True
        self._ranks.signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            self.end_at_once(number, frame)
            return
        print("\nmegatron-dpop: interrupted: saving after this step; Ctrl-C again leaves at once", file=sys.stderr)
        self.hand_on(number, frame)

    def end_at_once(self, number: int, frame: FrameType | None) -> None:
        self.at_once = True
        self._ranks.signal(signal.SIGKILL)

    def end_as(self, number: signal.Signals) -> int:
        """Ends this process by the signal itself, so that a shell's loop around it ends too."""
        signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
        os.kill(os.getpid(), number)
        return 128 + number


@contextlib.contextmanager
def _signals_for(ranks: LocalRanks) -> Iterator[_Asked]:
    asked = _Asked(ranks)
    handlers = {
        **dict.fromkeys((*SIGNALS, signal.SIGHUP), asked.hand_on),
        signal.SIGINT: asked.interrupt,
        signal.SIGQUIT: asked.end_at_once,
    }
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        # nohup keeps the terminal's signals from a command. A job script keeps its own from itself: they are for us.
        if before[number] != signal.SIG_IGN or number in SIGNALS:
            signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _correct_heartbeat(said: Sequence[exits.Word], state: str, reason: str) -> None:
    """Says in the run's heartbeat how it ended, where rank 0 was ended before it could."""
    for word in said:
        if word.kind != "heartbeat":
            continue
        with contextlib.suppress(OSError, ValueError):  # what is watched does not fail because watching does
            path = Path(word.message)
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("state") not in ("failed", "stopped", "unhealthy", "finished"):
                write_json(path, {**values, "state": state, "error": reason})
