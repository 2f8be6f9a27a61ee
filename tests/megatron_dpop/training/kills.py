"""Kills a run at a chosen one of the operations by which it changes its folders, whatever it is doing then.

Every file that a run leaves is made, flushed, renamed or removed by a few functions of `os`. A run that is killed
before its n-th call of any of them is killed at each moment that could matter, and always at the same one.
"""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.distributed import _start, run_ranks
from tests.training import Outcome, run_here

CHANGES = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")


def run_in(cache: Path, tree: dict) -> list[Outcome]:
    """A whole run, with its own token cache, as the command does it: as the folder's one writer."""
    from megatron_dpop.runtime.folder_lock import sole_writer

    os.environ["XDG_CACHE_HOME"] = str(cache)
    with sole_writer(Path(tree["run"]["dir"])) if os.environ["RANK"] == "0" else nullcontext():
        return run_here(tree)


def counted_in(cache: Path, tree: dict) -> list[str]:
    """A whole run; the operations that could have been its last, as `name path`."""
    seen: list[str] = []
    _before_each_change(lambda name, target: seen.append(f"{name} {target}"))
    run_in(cache, tree)
    return seen


def killed_in(cache: Path, tree: dict, at: int, rank: int) -> None:
    """A run whose `rank` dies, with all processes that it started, before the first rank's operation number `at`."""
    import torch.distributed as dist

    groups: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(groups, os.getpgrp())
    count = 0

    def kill_at_last(name: str, target: str) -> None:
        nonlocal count
        if count == at:
            os.killpg(groups[rank], signal.SIGKILL)
        count += 1

    if dist.get_rank() == 0:
        _before_each_change(kill_at_last)
    run_in(cache, tree)


def _before_each_change(call: Callable[[str, str], None]) -> None:
    def replaced(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
            call(name, str(target))
            return real(*args, **options)

        return changed

    for name in CHANGES:
        setattr(os, name, replaced(name, getattr(os, name)))


def kill(cache: Path, tree: dict, at: int, *, rank: int = 0, world_size: int = 1) -> bool:
    """Whether the rank was killed; the run may have ended before. The launcher kills the others, as this does."""
    processes, _queue, _store = _start(killed_in, world_size, (cache, tree, at, rank))
    processes[rank].join()
    for process in processes:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return bool(processes[rank].exitcode == -signal.SIGKILL)


def difference(cache: Path, tree: dict, whole: Outcome, whole_run: Path, *, world_size: int = 1) -> str | None:
    """Starts a killed run again; says what of its end is not as in the run that was left alone."""
    (resumed,) = run_ranks(run_in, world_size, cache, tree)[0]
    run = Path(tree["run"]["dir"])
    if resumed.error is not None:
        return f"it did not go on: {resumed.error}"
    if resumed.comparable() != whole.comparable():
        return "other metrics"
    for path in sorted((whole_run / "hf").iterdir()):
        if path.name != "conversion-manifest.json" and (run / "hf" / path.name).read_bytes() != path.read_bytes():
            return f"another {path.name}"
    left = [str(path) for path in run.rglob(".*.tmp")]
    return f"left behind: {left}" if left else None
