"""Inputs one after another in a process of their own, which is ended and begun anew where one takes too long."""

import faulthandler
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fuzzing.kinds import KINDS

STACK = "stack.txt"  # where a process was when an input's time was over
WARM_INPUTS = 10  # which take the ways of a kind
WAIT_SECONDS = 60.0  # until an input that gives no answer is given up


@dataclass(frozen=True)
class FuzzFinding:
    kind: str
    number: int
    wrong: str
    detail: str


def try_inputs(
    names: list[str], seed: int, *, first: int, seconds: float | None = None, count: int | None = None
) -> Iterator[FuzzFinding | None]:
    """
    Yields each input's finding, or None where all was good: kinds in turn, each from number `first` on, until the
    time is over or there were `count` of each.
    """
    end = time.monotonic() + seconds if seconds is not None else None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        _warm_up(Path(folder) / "warm")
        worker = _Worker(names, seed, Path(folder))
        number = first
        try:
            while count is None or number < first + count:
                for name in names:
                    if end is not None and time.monotonic() > end:
                        return
                    yield worker.judge(name, number)
                number += 1
        finally:
            worker.end()


class _Worker:
    """A process that judges; it is forked, so that torch is imported once."""

    def __init__(self, names: list[str], seed: int, folder: Path) -> None:
        self._names, self._seed, self._folder = names, seed, folder
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        arguments = (self._names, self._seed, self._folder / str(self._starts), theirs)
        self._process = context.Process(target=_work, args=arguments, daemon=False)
        self._process.start()
        theirs.close()
        if self._pipe.recv() != "ready":
            raise RuntimeError("the good inputs could not be made")

    def judge(self, name: str, number: int) -> FuzzFinding | None:
        self._pipe.send((name, number))
        try:
            if self._pipe.poll(WAIT_SECONDS):
                wrong, detail = self._pipe.recv()
                return FuzzFinding(name, number, wrong, detail) if wrong else None
            wrong = f"no answer in {WAIT_SECONDS:.0f} seconds"
        except EOFError:
            wrong = f"ended the process (exit code {self._process.exitcode})"
        self.end()
        stack = self._folder / str(self._starts) / STACK
        detail = stack.read_text() if stack.exists() else ""
        self._start()
        return FuzzFinding(name, number, wrong, detail)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _warm_up(folder: Path) -> None:
    """Imports what commands import when they first need it, so that each worker has it from its fork on."""
    os.environ.update(
        XDG_CACHE_HOME=str(folder / "cache"), HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"), TERM="dumb",
        MEGATRON_DPOP_DEVICE="cpu", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1",
    )  # fmt: skip
    os.fsync = lambda fd: None  # what is written here need not outlive the machine
    from fuzzing.judge import judge

    for kind in KINDS.values():
        made = kind(folder / kind.name)
        for number in range(WARM_INPUTS):
            judge(made, 0, number, folder / "work")


def _work(names: list[str], seed: int, folder: Path, pipe: Connection) -> None:
    from fuzzing.judge import judge, limit_memory

    kinds = {name: KINDS[name](folder / name) for name in names}
    limit_memory()
    pipe.send("ready")
    with (folder / STACK).open("w") as stack:
        while True:
            name, number = pipe.recv()
            faulthandler.dump_traceback_later(WAIT_SECONDS / 2, file=stack)
            result = judge(kinds[name], seed, number, folder / "work")
            faulthandler.cancel_dump_traceback_later()
            pipe.send(result)
