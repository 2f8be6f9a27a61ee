"""`megatron-dpop clean`: removes what runs that have ended, and caches, can do without."""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.run_names import BEST, CONFIG

DAY_SECONDS = 24 * 3600


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "clean",
        help="remove old checkpoints and caches",
        description="Removes a run's older checkpoints, but for the newest whole ones and the best, and its starting "
        "weights as converted (initial/), which are made anew if they are ever needed. Exports, metrics and reference "
        "stay, and a run can still go on. With --caches, tokens that no run has read for a while.",
        epilog="example: megatron-dpop clean runs/dpo runs/dpop --dry-run",
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--keep", type=int, default=1, metavar="N", help="newest checkpoints that stay (default 1)")
    parser.add_argument("--caches", action="store_true", help="cached tokens too, that were not read for --days")
    parser.add_argument("--days", type=float, default=30, metavar="N", help="see --caches (default 30)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed, and its size")
    parser.set_defaults(run=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    from megatron_dpop.runtime.folder_lock import sole_writer
    from megatron_dpop.tracking.disk import in_units, removable, size_of

    if arguments.keep < 1 or arguments.days < 0:
        raise UserError("clean: --keep counts checkpoints from 1, --days from 0")
    if not arguments.runs and not arguments.caches:
        raise UserError("clean: nothing is named; give runs' folders, or --caches")
    total = 0
    with ExitStack() as held:
        for run in arguments.runs:
            _check_run(run)
            if not arguments.dry_run:
                held.enter_context(sole_writer(run))  # so that no run goes on from what is being removed
        found = [path for run in arguments.runs for path in removable(run, keep=arguments.keep, best=_best(run))]
        if arguments.caches:
            found += _old_tokens(arguments.days)
        for path in found:
            size = size_of(path)
            total += size
            print(f"{in_units(size):>8}  {path}")
            if not arguments.dry_run:
                _remove(path)
    print(f"{in_units(total):>8}  {'would be removed' if arguments.dry_run else 'removed'}")
    return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_run(run: Path) -> None:
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not a run (it has no config.yaml); give a run's folder")


def _best(run: Path) -> int | None:
    """The step of the best checkpoint, where the run has one. Raises UserError where its record cannot be read."""
    record = run / BEST
    try:
        return int(json.loads(record.read_bytes())["step"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: not readable; restore it, or delete it to give up the best checkpoint") from None


def _old_tokens(days: float) -> Iterator[Path]:
    from megatron_dpop.training.inputs import token_cache

    cache = token_cache()
    before = time.time() - days * DAY_SECONDS
    for path in sorted(cache.iterdir()) if cache.is_dir() else ():
        status = path.lstat()
        if max(status.st_atime, status.st_mtime) < before:
            yield path
