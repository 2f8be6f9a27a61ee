"""Carries a plan out: several files at once, a part of a piece in memory per worker, each file whole or absent."""

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, local
from typing import BinaryIO, cast

from checkpoint_convert.conversion.conversion import Conversion
from checkpoint_convert.conversion.journal import Journal, WrittenFile, WrittenPiece
from checkpoint_convert.conversion.plan import OutputFile, Piece
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.source import TensorSource, check_unchanged
from dpop_base.checksums import crc32
from dpop_base.errors import UserError
from dpop_base.files import begin_writeback, sync
from dpop_base.progress import Advance

# What a worker reads, converts, sums and writes at once: it stays in a core's cache from the reading to the writing.
PART_BYTES = 512 << 10
# A worker tells the disk to begin with what it has written, so that little is left to wait for at a file's end.
WRITEBACK_BYTES = 16 << 20


def default_workers() -> int:
    """Several files at once keep a disk busy that one stream cannot; more than four gain nothing."""
    return max(2, min(4, 2 * (os.cpu_count() or 1)))


class _StoppedError(Exception):
    """Another worker failed."""


class Executor:
    """Writes the files of one conversion. Raises UserError for what the source or the disk does wrong."""

    def __init__(self, conversion: Conversion, journal: Journal, advance: Advance) -> None:
        self._conversion, self._journal, self._advance = conversion, journal, advance
        self._stop = Event()
        self._assembler = _Assembler(conversion.source)

    def run(self, workers: int) -> None:
        """Writes the files that the journal does not have yet."""
        files = self._conversion.files
        left = [file for file in files if file.name not in self._journal.written]
        for file in files:
            self._temporary(file).unlink(missing_ok=True)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            futures = [pool.submit(self._write_file, file) for file in left]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also on KeyboardInterrupt: the workers stop at their next piece
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
        errors.sort(key=lambda error: isinstance(error, _StoppedError))  # the cause before its consequences
        if errors:
            raise _as_user_error(errors[0], self._conversion.target, len(self._journal.written), len(files))

    def _temporary(self, file: OutputFile) -> Path:
        path = self._conversion.target / file.name
        return path.with_name(f".{path.name}.tmp")

    def _write_file(self, file: OutputFile) -> None:
        temporary, path = self._temporary(file), self._conversion.target / file.name
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", buffering=0) as raw:
                stream = cast(BinaryIO, _Whole(raw))
                head_crc32 = self._conversion.begin(stream, file)
                pieces = tuple(self._write_one(stream, piece) for piece in file.pieces)
                num_bytes = stream.tell()
                os.fsync(raw.fileno())
            check_unchanged(self._conversion.states)
            os.replace(temporary, path)
            sync(path.parent)
            self._journal.record(WrittenFile(file.name, num_bytes, pieces, head_crc32))
        except BaseException:
            self._stop.set()
            temporary.unlink(missing_ok=True)
            raise

    def _write_one(self, stream: BinaryIO, piece: Piece) -> WrittenPiece:
        if self._stop.is_set():
            raise _StoppedError
        offset = stream.tell()
        crc32 = self._conversion.write_piece(stream, piece, self._assembler.parts(piece))
        self._advance(piece.num_bytes)
        return WrittenPiece(offset, stream.tell() - offset, crc32)


class _Assembler:
    """Makes pieces of a source's rows, from any thread."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._memory = local()

    def parts(self, piece: Piece) -> Iterator[memoryview]:
        """The piece's elements, in order, each part in a buffer of this thread that the next one overwrites."""
        left = piece.num_bytes
        out, filled = self._buffer("part", PART_BYTES), 0
        for segment in piece.segments:
            info = self._source.tensors[segment.source]
            row_bytes = info.row_bytes // ITEM_BYTES[info.dtype] * ITEM_BYTES[piece.dtype]
            done = 0
            while done < segment.rows:
                if filled and filled + row_bytes > len(out):
                    yield out[:filled]
                    left, filled = left - filled, 0
                if row_bytes > len(out):
                    out = self._buffer("part", row_bytes)
                rows = min(segment.rows - done, max(1, (len(out) - filled) // max(1, row_bytes)))
                part = out[filled : filled + rows * row_bytes]
                self._read(segment.source, segment.start + done, rows, part, piece.dtype)
                done, filled = done + rows, filled + len(part)
        if filled:
            yield out[:filled]
        assert left == filled, piece

    def _read(self, name: str, first: int, rows: int, out: memoryview, dtype: str) -> None:
        info = self._source.tensors[name]
        if info.dtype == dtype:
            self._source.read_rows(name, first, rows, out)
            return
        raw = self._buffer("raw", rows * info.row_bytes)
        self._source.read_rows(name, first, rows, raw)
        _convert(raw, info.dtype, out, dtype, name)

    def _buffer(self, name: str, num_bytes: int) -> memoryview:
        held = getattr(self._memory, name, None)
        if held is None or len(held) < num_bytes:
            held = bytearray(num_bytes)
            setattr(self._memory, name, held)
        return memoryview(held)[:num_bytes]


def checksums(source: TensorSource, pieces: list[Piece], workers: int) -> dict[tuple[str, int], int]:
    """The CRC-32 of each piece's elements, by tensor and first row: what a conversion would write, without writing."""
    assembler = _Assembler(source)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(lambda piece: crc32_of(assembler.parts(piece)), pieces)
        return {(piece.tensor, piece.first_row): value for piece, value in zip(pieces, found, strict=True)}


def crc32_of(parts: Iterable[memoryview]) -> int:
    value = 0
    for part in parts:
        value = crc32(part, value)
    return value


class _Whole:
    """
    An unbuffered stream whose `write` writes everything, where the system call may stop short, and has the disk begin.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._begun = raw, 0
        self.tell, self.seek, self.flush = raw.tell, raw.seek, raw.flush

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._raw.write(view[done:])
        if self._raw.tell() - self._begun >= WRITEBACK_BYTES:
            begin_writeback(self._raw.fileno(), self._begun, self._raw.tell() - self._begun)
            self._begun = self._raw.tell()
        return done


def _convert(raw: memoryview, dtype: str, out: memoryview, to: str, name: str) -> None:
    import torch  # only where a dtype changes: importing it takes longer than converting a small model

    from checkpoint_convert.tensors.torch_dtypes import TORCH, write_elements

    if len(raw):
        write_elements(torch.frombuffer(raw, dtype=TORCH[dtype]), out, to, name)


def _as_user_error(error: BaseException, folder: Path, written: int, total: int) -> BaseException:
    if not isinstance(error, OSError):
        return error
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "no space is left" if full else f"cannot be written ({error.strerror})"
    fix = "free some" if full else "fix that"
    return UserError(f"{folder}: {what}; {fix} and run the same command again ({written} of {total} files are done)")
