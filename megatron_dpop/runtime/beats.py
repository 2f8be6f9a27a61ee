"""Names the rank that the others of its node wait for: one that is stopped or gone, and one that hangs. No torch here.

In a step every rank waits for every other, so one that stands still looks to the others like a slow network, for half
an hour. Each rank therefore writes down every second, in memory that the ranks of its node share, that it lives, and
whether its main thread has moved, works, or waits for others; and reads what the others wrote. It costs the main thread
nothing.

A rank whose beat stands still runs no thread at all: it is stopped, or its machine is; the run cannot go on. A rank
whose main thread has not moved while all others wait for it may hang, or do what takes long: it is named, and only long
after that ended. Time is counted in beats of the rank that looks: where all were suspended and go on, none has missed
anything.
"""

import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from megatron_dpop.runtime.local_ranks import is_stopped
from megatron_dpop.runtime.rank import Rank

STEPS_TO_NAME, STEPS_TO_END = 3, 20  # of the longest step so far, where that is more
COMPUTES_SECONDS = 0.01  # of a processor between two looks
DEEPEST = 60  # frames that are looked at

SLOT = struct.Struct("<QQQdd160s")  # beat, process id, flags, seconds that it stood still, longest step, where
WAITS, ALONE = 1, 2  # flags


@dataclass(frozen=True)
class Patience:
    """How often ranks look at each other, and how long they wait."""

    beat_seconds: float = 1.0
    silent_seconds: float = 30.0  # longer than anything that keeps Python from running a thread
    still_seconds: float = 40.0  # of a rank that is named
    hung_seconds: float = 600.0  # of a rank that is ended, once steps have been taken


@dataclass(frozen=True)
class Slot:
    """What a rank has written down of itself."""

    beat: int
    process_id: int
    waits: bool  # for other ranks
    alone: bool  # does what the others have been told to wait for
    still_seconds: float
    longest_step_seconds: float
    where: str  # its main thread is


class Board:
    """Memory that the ranks of a node share: a slot for each."""

    def __init__(self, descriptor: int, ranks: int) -> None:
        os.ftruncate(descriptor, ranks * SLOT.size)
        self.ranks = ranks
        self._memory = mmap.mmap(descriptor, ranks * SLOT.size)

    def write(self, rank: int, slot: Slot) -> None:
        flags = WAITS * slot.waits + ALONE * slot.alone
        where = slot.where.encode(errors="replace")[:160]
        numbers = slot.beat, slot.process_id, flags, slot.still_seconds, slot.longest_step_seconds
        SLOT.pack_into(self._memory, rank * SLOT.size, *numbers, where)

    def read(self, rank: int) -> Slot:
        beat, process_id, flags, still, step, where = SLOT.unpack_from(self._memory, rank * SLOT.size)
        text = where.rstrip(b"\0").decode(errors="replace")
        return Slot(beat, process_id, bool(flags & WAITS), bool(flags & ALONE), still, step, text)


class MainThread:
    """What can be seen of the main thread from another one."""

    def __init__(self) -> None:
        self.waits = self.alone = 0  # how many blocks of code that say so it is in
        self.longest_step_seconds, self.steps = 0.0, 0
        self._frames: tuple[tuple[int, int], ...] = ()
        self._cpu_seconds = 0.0

    def look(self) -> tuple[bool, bool, str]:
        """Whether it has moved since the last look, whether it waits for others, and where it is.

        One long call, or a loop over one, stands at one place and yet computes: that is to move. Whoever waits for
        others may spin, and does not.
        """
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = list(_stack(frame))
        frames = tuple((id(at.f_code), at.f_lasti) for at in stack)
        cpu_seconds = time.clock_gettime(time.pthread_getcpuclockid(threading.main_thread().ident or 0))
        computed, self._cpu_seconds = cpu_seconds - self._cpu_seconds > COMPUTES_SECONDS, cpu_seconds
        moved, self._frames = frames != self._frames, frames
        waits = bool(self.waits) or any("torch/distributed/" in at.f_code.co_filename for at in stack[:6])
        where = next((at for at in stack if "site-packages" not in at.f_code.co_filename), stack[0] if stack else None)
        return moved or (computed and not waits), waits, _named(where)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(DEEPEST):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _named(frame: FrameType | None) -> str:
    if frame is None:
        return "no known place"
    file = "/".join(frame.f_code.co_filename.split("/")[-2:])
    return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"


MAIN = MainThread()


@contextmanager
def waiting() -> Iterator[None]:
    """The main thread waits for other ranks within it: its place does not show that where a GPU is between them."""
    MAIN.waits += 1
    try:
        yield
    finally:
        MAIN.waits -= 1


@contextmanager
def working_alone() -> Iterator[None]:
    """The others wait for this rank within it, for hours if need be."""
    MAIN.alone += 1
    try:
        yield
    finally:
        MAIN.alone -= 1


def step_took(seconds: float) -> None:
    """What is long for a step depends on those before. The first one compiles and fills caches."""
    MAIN.steps += 1
    MAIN.longest_step_seconds = max(MAIN.longest_step_seconds, seconds)


class NodeWatch:
    """Writes this rank's slot and reads the others'. `lost` ends this process, `say` tells the user."""

    def __init__(
        self,
        board: Board,
        rank: Rank,
        *,
        say: Callable[[str], None],
        lost: Callable[[str], None],
        main: MainThread = MAIN,
        patience: Patience = Patience(),
    ) -> None:
        self._board, self._me, self._first_rank = board, rank.local_rank, rank.rank - rank.local_rank
        self._say, self._lost, self._main, self._patience = say, lost, main, patience
        self._beat, self._still, self._named = 0, 0.0, False
        self._last = [0] * board.ranks
        self._silent = [0.0] * board.ranks
        self._stopped = threading.Event()
        self._write()

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="node watch").start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._patience.beat_seconds):
            self._write()
            slots = [self._board.read(rank) for rank in range(self._board.ranks)]
            reason = self._silence(slots) or self._hang(slots)
            if reason is not None and not self._stopped.is_set():
                self._lost(reason)
                return

    def _write(self) -> None:
        moved, waits, where = self._main.look()
        self._beat += 1
        self._still = 0.0 if moved else self._still + self._patience.beat_seconds
        longest = self._main.longest_step_seconds
        self._board.write(
            self._me, Slot(self._beat, os.getpid(), waits, bool(self._main.alone), self._still, longest, where)
        )

    def _silence(self, slots: Sequence[Slot]) -> str | None:
        for rank, slot in enumerate(slots):
            self._silent[rank] = (
                self._silent[rank] + self._patience.beat_seconds if slot.beat == self._last[rank] else 0.0
            )
            self._last[rank] = slot.beat
            if rank != self._me and slot.beat and self._silent[rank] > self._patience.silent_seconds:
                why = "it is stopped (SIGSTOP)" if is_stopped(slot.process_id) else "none of its threads runs"
                seconds = f"{self._patience.silent_seconds:.0f} s"
                return (
                    f"{self._name(rank, slot)} has been silent for {seconds}: {why}; this run cannot go on without it"
                )
        return None

    def _hang(self, slots: Sequence[Slot]) -> str | None:
        """Where all have stood still for long, and some of them wait for the others of them."""
        still = min(slot.still_seconds for slot in slots)
        longest = max(slot.longest_step_seconds for slot in slots)
        at_work = [rank for rank, slot in enumerate(slots) if not slot.waits]
        if still < self._patience.beat_seconds or any(slot.alone for slot in slots):
            self._named = False
        if still < max(self._patience.still_seconds, STEPS_TO_NAME * longest) or any(slot.alone for slot in slots):
            return None
        if not 0 < len(at_work) < len(slots):
            return None
        slot = slots[at_work[0]]
        line = f"{self._name(at_work[0], slot)} has not moved for {still:.0f} s while the others wait: {slot.where}"
        if self._main.steps > 1 and still > max(self._patience.hung_seconds, STEPS_TO_END * longest):
            return f"{line}; ended, since it hangs"
        if not self._named and self._me == 0:
            self._say(f"warning: {line}")
        self._named = True
        return None

    def _name(self, local_rank: int, slot: Slot) -> str:
        return f"rank {self._first_rank + local_rank} (process {slot.process_id})"
