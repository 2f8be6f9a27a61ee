"""A run's folder has one writer at a time, on this machine and across those that share the folder. No torch here.

Two things say who it is. A lock of the kernel (`flock`, which NFS carries to its server where it can) tells for certain
on one machine, since it ends with its process. The file's content tells across machines, where locks may be missing, or
outlive a machine that died: a process that goes on changes it every few seconds.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dpop_base.errors import UserError
from dpop_base.files import remove_stale
from megatron_dpop.runtime import exits

NAME = ".writer.json"
FILE_BYTES = 1024  # of the content, padded: it is always overwritten as a whole
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # a writer on another machine that changed nothing for so long is dead
DYING_SECONDS = 5.0  # a killed process may take so long to free what it held


@dataclass(frozen=True)
class Writer:
    """A process that writes, as its file tells others."""

    token: str  # of one start
    host: str
    kernel: str  # a boot of a machine
    pid_namespace: str
    pid: int
    process_start: int  # in the kernel's ticks: a number is given to another process later
    since: str
    job: str | None
    restart: int
    beat: int = 0

    @staticmethod
    def this_process() -> "Writer":
        return Writer(
            token=uuid.uuid4().hex,
            host=socket.gethostname()[:64],
            kernel=_this_kernel(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            job=os.environ.get("SLURM_JOB_ID") or None,
            restart=int(os.environ.get("SLURM_RESTART_COUNT") or "0"),
        )

    def is_earlier_start_of(self, other: "Writer") -> bool:
        """SLURM starts a job again once it has ended it."""
        return self.job is not None and self.job == other.job and self.restart < other.restart

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} (since {self.since}{job})"


class FolderLock:
    """Held by one process; `lost` hears, on another thread, that somebody has taken the folder over."""

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None],
        lost: Callable[[str], None],
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.folder = folder
        self._path = folder / NAME
        self._say, self._lost = say, lost
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        self._me = Writer.this_process()
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises UserError where another process writes into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take()
            beats = threading.Thread(target=self._go_on, daemon=True, name="folder lock")
            beats.start()
            try:
                yield
            finally:
                self._stopped.set()
                beats.join()
                self._release()
        finally:
            os.close(self._file)

    def _take(self) -> None:
        locked = _lock(self._file, DYING_SECONDS)
        holder = _read(self._path)
        if not self._is_free(holder, locked):
            raise UserError(_refusal(self.folder, holder))
        if holder is not None:
            self._say(f"{self.folder} was left by {holder}, which has ended; taken over")
        self._write()

    def _is_free(self, holder: Writer | None, locked: bool | None) -> bool:
        if holder is None:
            return locked is not False
        if holder.is_earlier_start_of(self._me):
            return True
        if holder.kernel == self._me.kernel:
            if locked is not None:
                return locked
            if holder.pid_namespace == self._me.pid_namespace:
                return _process_start(holder.pid) != holder.process_start
        return self._falls_silent(holder)

    def _falls_silent(self, holder: Writer) -> bool:
        patience = f"looking for up to {self._silent_seconds:.0f} s whether it still does"
        self._say(f"{self.folder}: {holder} wrote here last; {patience}")
        deadline = time.monotonic() + self._silent_seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._silent_seconds / 10))
            if (now := _read(self._path)) != holder:
                return now is None
        return True

    def _go_on(self) -> None:
        """Shows that this process lives, and looks whether the folder is still its own."""
        while not self._stopped.wait(self._beat_seconds):
            try:
                holder = _read(self._path)
                if holder is None or holder.token == self._me.token:
                    self._me = replace(self._me, beat=self._me.beat + 1)
                    self._write()
                    continue
            except OSError:
                continue  # the file system will be back, or a step will fail on it
            self._lost(f"run.dir: {self.folder} was taken over by {holder}; this process must not write there any more")
            return

    def _write(self) -> None:
        text = json.dumps(asdict(self._me)).encode()
        os.pwrite(self._file, text.ljust(FILE_BYTES - 1) + b"\n", 0)
        os.fsync(self._file)

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            holder = _read(self._path)
            if holder is not None and holder.token == self._me.token:
                os.ftruncate(self._file, 0)
            fcntl.flock(self._file, fcntl.LOCK_UN)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a run's folder, and removes what killed processes have left half-written there.

    Raises UserError where another process holds it.
    """

    def lost(message: str) -> None:
        exits.report("error", message)
        os._exit(exits.BAD_INPUT)  # the main thread writes into a folder that is another's

    lock = FolderLock(folder, say=lambda line: print(line, file=sys.stderr, flush=True), lost=lost)
    with lock.held():
        remove_stale(folder)
        yield


def check_unlocked(folder: Path) -> None:
    """Raises UserError where a process of this machine writes into the folder, before anything is begun."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        holder = _read(folder / NAME)
        if holder is not None and holder.kernel == _this_kernel() and _lock(descriptor, DYING_SECONDS) is False:
            raise UserError(_refusal(folder, holder))
    finally:
        os.close(descriptor)


def _refusal(folder: Path, holder: Writer | None) -> str:
    who = str(holder) if holder else "another process"
    end = f"`kill {holder.pid}` on {holder.host}" if holder else "end it"
    return (
        f"run.dir: {folder} is being written by {who}; wait for its end or stop it ({end}), or choose another run.dir. "
        "Once it is dead, the same command takes the folder over"
    )


def _lock(descriptor: int, patience_seconds: float) -> bool | None:
    """True: locked. False: another process has it. None: this file system has no locks."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _read(path: Path) -> Writer | None:
    """None where nobody has the folder. Opened anew, since NFS shows what others wrote to those who open."""
    for _ in range(5):
        text = path.read_bytes().strip()
        if not text:
            return None
        with contextlib.suppress(ValueError, TypeError):
            found = Writer(**json.loads(text))
            if all(type(number) is int for number in (found.pid, found.process_start, found.restart, found.beat)):
                return found
        time.sleep(0.1)  # read while it was written
    return None


def _this_kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """When a process was started; None where there is none of that number (or only what is left of one)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
