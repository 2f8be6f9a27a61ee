"""Files that are either whole or absent (temporary name, fsync, rename), and locks among those who write one."""

import ctypes
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


def is_file_name(name: str) -> bool:
    """True for the plain name of a file of a folder: no path out of it, nothing that the system cannot open."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and len(name) <= 255


_SYNC_FILE_RANGE_WRITE = 2


@contextmanager
def replacing(path: Path, *, sync_folder: bool = True) -> Iterator[Path]:
    """
    Yields a temporary path beside `path`; on success it is synced and renamed to `path`, else removed. Whoever writes
    several files into a folder need sync the folder only once, after the last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        if sync_folder:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system says that has none


def lock(descriptor: int, *, wait: bool) -> bool:
    """Takes an exclusive lock on an open file, which ends with the process; False where another process has it. Where
    the file system has no locks it is taken all the same: nobody can be kept out there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is within, by an exclusive lock on this file; a dead one's lock is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Removes the temporary files that killed processes of this machine have left in a folder and below it."""
    for path in folder.rglob(".*.tmp"):
        pid = path.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writeback(descriptor: int, offset: int, num_bytes: int) -> None:
    """Has the kernel begin to write these bytes of a file to the disk, without waiting. It is no promise: fsync is."""
    if function := _sync_file_range():
        function(descriptor, ctypes.c_int64(offset), ctypes.c_int64(num_bytes), _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    """Linux's system call, which Python has no name for; None elsewhere."""
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


def write_bytes(path: Path, content: bytes) -> None:
    """A file that holds this already is left alone, with its time."""
    if path.is_file() and path.read_bytes() == content:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A lone surrogate of somebody's file has no bytes in UTF-8: written so, it is JSON's own escape.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))
