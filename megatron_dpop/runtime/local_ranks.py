"""The processes of this node's ranks: started, signalled, waited for, and ended together. No torch here."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from megatron_dpop.runtime import exits
from megatron_dpop.runtime.parent import die_with_parent
from megatron_dpop.runtime.rank import STORE_VARIABLE

POLL_SECONDS = 0.05
SECONDS_TO_END = 20.0  # of the others once one has failed: those that still say why, or remove what is half written
# A terminal sends these to all of its processes; the ranks leave them to their launcher, which sends SIGTERM.
LEFT_TO_THE_LAUNCHER = (signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Placement:
    """The ranks of this node among all."""

    ranks: int
    node: int = 0
    nodes: int = 1
    address: str = ""  # of several nodes: where the ranks meet
    port: int = 0

    def environment(self, local_rank: int) -> dict[str, str]:
        values: dict[str, int | str] = {
            "RANK": self.node * self.ranks + local_rank,
            "WORLD_SIZE": self.nodes * self.ranks,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": self.ranks,
            "GROUP_RANK": self.node,
            "GROUP_WORLD_SIZE": self.nodes,
        }
        if self.nodes > 1:
            values |= {"MASTER_ADDR": self.address, "MASTER_PORT": self.port}
        return {name: str(value) for name, value in values.items()}


@dataclass(frozen=True)
class Logs:
    """Where the ranks' output goes: a folder of files for each rank, and here what `shown` ranks say."""

    folder: Path
    shown: frozenset[int]  # local ranks


@dataclass
class End:
    """How a rank ended."""

    rank: int
    process_id: int
    code: int  # negative: the signal that ended it
    is_ours: bool  # we ended it


@dataclass
class LocalRanks:
    """Runs `python WORDS` once for each rank. Whatever happens to this process, no rank outlives it."""

    words: Sequence[str]
    placement: Placement
    logs: Logs | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)  # in the order in which they were seen
    _ended_by_us: bool = False
    _copiers: list[threading.Thread] = field(default_factory=list)

    @contextmanager
    def started(self) -> Iterator[None]:
        """The ranks run within it; those that still do at its end are killed."""
        self._store, self._words = _file_without_name("store"), _file_without_name("words", os.O_APPEND)
        try:
            for local_rank in range(self.placement.ranks):
                self.processes.append(self._start(local_rank))
            yield
        finally:
            self.signal(signal.SIGKILL)
            for process in self.processes:
                process.wait()
            for copier in self._copiers:
                copier.join(timeout=1)  # a grandchild may still hold the other end
            os.close(self._store)

    def said(self) -> list[exits.Word]:
        """What the ranks said to us."""
        return exits.read_words(os.pread(self._words, os.fstat(self._words).st_size, 0))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all ranks that have not ended."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> None:
        """Until all have ended. Once one has failed the others may end by themselves, and then are ended."""
        give_up = None
        while len(self.ends) < len(self.processes):
            self._see_ends()
            if give_up is None and any(end.code for end in self.ends):
                give_up = time.monotonic() + SECONDS_TO_END
                self._end_others()
            if give_up is not None and time.monotonic() > give_up:
                self.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _see_ends(self) -> None:
        seen = {end.rank for end in self.ends}
        for local_rank, process in enumerate(self.processes):
            rank = self.placement.node * self.placement.ranks + local_rank
            code = process.poll()
            if rank not in seen and code is not None:
                ours = self._ended_by_us and code in (-signal.SIGTERM, -signal.SIGKILL)
                self.ends.append(End(rank, process.pid, code, ours))

    def _end_others(self) -> None:
        """Asks them; one that is stopped cannot hear."""
        self._ended_by_us = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if is_stopped(process.pid) else signal.SIGTERM)

    def _start(self, local_rank: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            # Bars of other libraries would run into ours; what is fetched was fetched before ranks are started.
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            **self.placement.environment(local_rank),
            exits.WORDS_VARIABLE: str(self._words),
        }
        if self.placement.nodes == 1:
            environment[STORE_VARIABLE] = str(self._store)
            environment.pop("MASTER_ADDR", None)
            environment.pop("MASTER_PORT", None)
        parent = os.getpid()

        def in_the_child() -> None:
            die_with_parent(parent)
            for number in LEFT_TO_THE_LAUNCHER:
                signal.signal(number, signal.SIG_IGN)

        streams = self._streams(local_rank)
        process = subprocess.Popen(
            [sys.executable, *self.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
            pass_fds=(self._store, self._words),
            preexec_fn=in_the_child,
        )
        for stream in streams:
            if stream is not None:
                os.close(stream)
        return process

    def _streams(self, local_rank: int) -> tuple[int | None, int | None]:
        """Standard output and error of a rank: ours, its files, or a pipe from which a thread copies to both."""
        if self.logs is None:
            return None, None
        folder = self.logs.folder / str(local_rank)
        folder.mkdir(parents=True, exist_ok=True)
        rank = self.placement.node * self.placement.ranks + local_rank
        streams = []
        for name, here in (("stdout.log", sys.stdout.buffer), ("stderr.log", sys.stderr.buffer)):
            file = (folder / name).open("ab")
            if local_rank in self.logs.shown:
                reader, writer = os.pipe()
                arguments = (os.fdopen(reader, "rb"), file, here, f"[rank {rank}] ".encode())
                copier = threading.Thread(target=_copy_lines, args=arguments, daemon=True, name="log")
                copier.start()
                self._copiers.append(copier)
                streams.append(writer)
            else:
                streams.append(os.dup(file.fileno()))
                file.close()
        return streams[0], streams[1]


def _copy_lines(source: IO[bytes], file: IO[bytes], here: IO[bytes], prefix: bytes) -> None:
    with source, file:
        for line in source:
            file.write(line)
            file.flush()
            here.write(prefix + line)
            here.flush()


def _file_without_name(name: str, flags: int = 0) -> int:
    """A file in memory that only processes which inherit its descriptor can reach, and that goes with the last one."""
    descriptor = os.memfd_create(f"megatron-dpop-{name}")
    if flags:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return descriptor


def is_stopped(process_id: int) -> bool:
    """True for a process that a signal (SIGSTOP, Ctrl-Z) or a debugger has halted. Linux."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("T", "t")
