"""What both directions share: continue or begin, write all files, finish, leave a manifest."""

import shutil
from typing import Any

from checkpoint_convert.conversion.conversion import Conversion
from checkpoint_convert.conversion.journal import JOURNAL, Journal, OtherConversionError, open_journal
from checkpoint_convert.conversion.manifest import write_manifest
from checkpoint_convert.conversion.run import Executor, checksums
from checkpoint_convert.manifest import MANIFEST, check_small_files, read_manifest
from checkpoint_convert.tensors.source import check_unchanged
from dpop_base.checksums import seal
from dpop_base.errors import UserError
from dpop_base.files import write_json
from dpop_base.progress import byte_progress


def convert(conversion: Conversion, *, workers: int, progress: bool) -> None:
    """
    Carries the conversion out, or continues it, or finds it done, which it is where the files beside the weights are
    as they were written: weights are checked when they are read. Raises UserError.
    """
    target = conversion.target
    if _already_done(conversion, workers):
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        names = {"fingerprint": conversion.fingerprint, "layout": conversion.layout}
        with open_journal(target, **names, command=conversion.command) as journal:
            if (target / MANIFEST).exists():  # another process has finished one since that was looked for
                (target / JOURNAL).unlink()
                convert(conversion, workers=workers, progress=progress)
                return
            _check_space(conversion, journal)
            _write_all(conversion, journal, workers=workers, progress=progress)
            check_unchanged(conversion.states)
            conversion.finish(journal)
            write_manifest(target, **names, files=conversion.files, written=journal.written)
            (target / JOURNAL).unlink(missing_ok=True)
    except OSError as error:
        where = error.filename or target
        raise UserError(f"{where}: cannot be written ({error.strerror}); fix that and run again") from None


def _write_all(conversion: Conversion, journal: Journal, *, workers: int, progress: bool) -> None:
    done = sum(file.num_bytes for file in conversion.files if file.name in journal.written)
    total = sum(file.num_bytes for file in conversion.files)
    with byte_progress("converting", total, done_bytes=done, show=progress) as advance:
        Executor(conversion, journal, advance).run(workers)


def _already_done(conversion: Conversion, workers: int) -> bool:
    """True where the target holds this very conversion, whole. Raises UserError where it holds anything else."""
    target = conversion.target
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is not a folder; name another target")
    manifest = read_manifest(target / MANIFEST)
    if manifest is not None:
        sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
        whole = all((target / n).is_file() and (target / n).stat().st_size == s for n, s in sizes.items())
        same_source = manifest["fingerprint"] == conversion.fingerprint
        if not same_source and whole and manifest.get("layout") == conversion.layout:
            if not _gives_the_same(conversion, manifest, workers):
                raise OtherConversionError(
                    f"{target}: was converted from this source before that changed; remove it, or name another target"
                )
            write_json(target / MANIFEST, seal({**manifest, "fingerprint": conversion.fingerprint}))
            same_source = True
        if same_source and whole:
            check_small_files(target)
            (target / JOURNAL).unlink(missing_ok=True)
            return True
        raise OtherConversionError(f"{target}: already holds another conversion; remove it or name another target")
    if target.is_dir() and not (target / JOURNAL).exists() and any(target.iterdir()):
        raise OtherConversionError(f"{target}: is not empty; name a new folder")
    return False


def _gives_the_same(conversion: Conversion, manifest: dict[str, Any], workers: int) -> bool:
    """Whether a source whose files were written again, or touched, still holds what was converted. Reads all of it."""
    written = {
        (name, piece["first_row"]): int(piece["crc32"], 16)
        for name, entry in manifest["tensors"].items()
        for piece in entry["pieces"]
    }
    found = checksums(conversion.source, [piece for file in conversion.files for piece in file.pieces], workers)
    return found == written


def _check_space(conversion: Conversion, journal: Journal) -> None:
    needed = sum(file.num_bytes for file in conversion.files if file.name not in journal.written)
    free = shutil.disk_usage(conversion.target).free
    if needed > free:
        raise UserError(
            f"{conversion.target}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; free some"
        )
