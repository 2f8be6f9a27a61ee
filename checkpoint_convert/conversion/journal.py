"""
What makes a conversion continue where it was stopped: a journal of finished files while it runs, and a manifest,
written last, that says that it is complete.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.manifest import MANIFEST
from dpop_base.errors import UserError
from dpop_base.files import lock, sync

JOURNAL = "conversion-journal.jsonl"


@dataclass(frozen=True)
class WrittenPiece:
    """Where a piece lies in its file, in bytes, and the CRC-32 of its elements."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class WrittenFile:
    name: str
    num_bytes: int
    pieces: tuple[WrittenPiece, ...]
    head_crc32: int | None = None  # of what lies before the first piece, in a format that has it


class OtherConversionError(UserError):
    """The target holds another conversion, or what is left of one."""


class BusyError(UserError):
    """Another process is converting into the target."""


class Journal:
    """The finished files of a conversion; `record` is durable when it returns."""

    def __init__(self, path: Path, descriptor: int, written: dict[str, WrittenFile]) -> None:
        self._path, self._descriptor = path, descriptor
        self.written = written

    def record(self, file: WrittenFile) -> None:
        os.write(self._descriptor, (json.dumps(asdict(file)) + "\n").encode())
        os.fsync(self._descriptor)
        self.written[file.name] = file


@contextmanager
def open_journal(folder: Path, *, fingerprint: str, layout: str, command: str) -> Iterator[Journal]:
    """
    Starts a journal in `folder`, or continues the one there; where the source has changed since (`layout` is the same
    and `fingerprint` is not), from the beginning. Raises OtherConversionError if that one belongs to another
    conversion, and BusyError if another process is writing it now.
    """
    path = folder / JOURNAL
    header = {"fingerprint": fingerprint, "layout": layout, "command": command}
    descriptor = _open_locked(path)
    try:
        lines = _whole_lines(descriptor)
        if lines and lines[0].get("fingerprint") != fingerprint and lines[0].get("layout") == layout:
            os.ftruncate(descriptor, 0)  # a restored shard, say: what was made of the damaged one is made anew
            lines = []
        if lines and lines[0].get("fingerprint") != fingerprint:
            raise OtherConversionError(
                f"{folder}: holds an interrupted conversion of another source or with other options "
                f"({lines[0].get('command')}); remove the folder to start over"
            )
        if not lines:
            os.write(descriptor, (json.dumps(header) + "\n").encode())
            os.fsync(descriptor)
            sync(folder)
        yield Journal(path, descriptor, _still_there(folder, lines[1:]))
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the file that has this name: whoever finishes a conversion removes the one that it has locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if not lock(descriptor, wait=False):
                raise BusyError(f"{path.parent}: another process is converting into this folder; wait for it")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_incomplete(folder: Path) -> bool:
    """True where a conversion into `folder` began and did not finish."""
    return (folder / JOURNAL).exists() and not (folder / MANIFEST).exists()


def interrupted_command(folder: Path) -> str:
    """The command that continues the conversion in `folder`."""
    try:
        first = (folder / JOURNAL).read_text(encoding="utf-8").partition("\n")[0]
        return str(json.loads(first)["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return "checkpoint-convert"


def _whole_lines(descriptor: int) -> list[dict[str, Any]]:
    """Parsed lines; a last line that a crash cut short is cut off the file as well."""
    data = b""
    while part := os.pread(descriptor, 1 << 20, len(data)):
        data += part
    whole = data[: data.rfind(b"\n") + 1]
    os.ftruncate(descriptor, len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if all(isinstance(line, dict) for line in lines):
            return lines
    except (ValueError, RecursionError):
        pass
    os.ftruncate(descriptor, 0)  # not ours, or damaged: nothing in it can be trusted
    return []


def _still_there(folder: Path, lines: list[dict[str, Any]]) -> dict[str, WrittenFile]:
    written = {}
    for line in lines:
        try:
            pieces = tuple(WrittenPiece(**piece) for piece in line["pieces"])
            file = WrittenFile(line["name"], line["num_bytes"], pieces, line["head_crc32"])
        except (KeyError, TypeError):
            continue  # of another version, or damaged: written anew
        path = folder / str(file.name)
        if path.is_file() and path.stat().st_size == file.num_bytes:
            written[file.name] = file
    return written
