"""Time of saving a run's checkpoint and of going on from it, with checksums and without.

Each load is from a cold page cache, and begins with building the model, as a run that is started again does. The run's
folder is temporary, beside run.dir; it takes two checkpoints. Any key of the config can be overridden:
--section.key VALUE.
"""

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.report import Report, markdown
from benchmarks.session import open_session
from benchmarks.subcommand import subcommand

_ITERATION = 1


@dataclass(frozen=True)
class Measurement:
    """Medians of seconds; `ratio` is the median of each turn's, with checksums over without."""

    what: str
    with_checksums: float
    without: float
    ratio: float


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py checkpoint config.yaml --repeats 5"
    parser = subcommand(subparsers, __name__, "what checksums cost a save and a resume", example=example)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each, with and without by turns")
    parser.set_defaults(takes_overrides=True)


def run(options: argparse.Namespace) -> Report:
    from megatron_dpop.config import load_config

    config = load_config(options.config, options.overrides)
    with open_session(config) as session:
        session.take_step()  # before it the optimizer has no state
        folder = session.run.folder.checkpoints
        saves = [(_save(session.engine, folder, True), _save(session.engine, folder, False)) for _ in _turns(options)]
        _save(session.engine, folder, True)
        run, device = session.run, session.engine.device
        del session.engine, run.engine  # its memory is for those that are loaded
        loads = [(_resume(run, device, True), _resume(run, device, False)) for _ in _turns(options)]
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    built = [(checked[0], plain[0]) for checked, plain in loads]
    loaded = [(checked[1], plain[1]) for checked, plain in loads]
    found = [
        _measured("a save", saves),
        _measured("a model built and loaded", built),
        _measured("of it, after the model is built", loaded),
    ]
    rows = [[m.what, f"{m.with_checksums:.2f}", f"{m.without:.2f}", f"{m.ratio:.2f}"] for m in found]
    text = f"{markdown(['seconds', 'with checksums', 'without', 'ratio'], rows)}\n\n{num_bytes / 1e9:.2f} GB"
    return Report(text, [asdict(measurement) for measurement in found])


def _turns(options: argparse.Namespace) -> range:
    return range(options.repeats)


def _measured(what: str, pairs: list[tuple[float, float]]) -> Measurement:
    ours, plain = zip(*pairs, strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    return Measurement(what, statistics.median(ours), statistics.median(plain), ratio)


def _save(engine: Any, folder: Path, checked: bool) -> float:
    import torch.distributed as dist

    from megatron_dpop.checkpoints import saving

    os.sync()
    dist.barrier()
    saver = saving.Saver(engine, folder, keep=1, asynchronous=False, on_saved=lambda name: None)
    with ExitStack() as stack:
        if not checked:
            stack.enter_context(patch.object(saving, "write_hashed", lambda write, _, *arguments: write(*arguments)))
            stack.enter_context(patch.object(saving, "named_digests", lambda files, _: {}))
        began = time.perf_counter()
        saver.save(_ITERATION)
        return time.perf_counter() - began


def _resume(run: Any, device: Any, checked: bool) -> tuple[float, float]:
    """Seconds to build a model and to fill it, and of the latter alone."""
    import torch.distributed as dist

    from checkpoint_convert.tensors.archive import TorchArchive
    from dpop_base.checkpoint_names import iteration_name
    from megatron_dpop.checkpoints import checkpoint
    from megatron_dpop.checkpoints.digests import digests_by_all_ranks
    from megatron_dpop.checkpoints.intact import damage
    from megatron_dpop.engine.engine import build_engine

    folder = run.folder.checkpoints
    for path in folder.rglob("*"):
        if path.is_file():
            _forget(path)
    dist.barrier()
    began = time.perf_counter()
    engine = build_engine(run.config, run.inputs.architecture, device)
    built = time.perf_counter()
    with ExitStack() as stack:
        if checked:
            assert damage(folder / iteration_name(_ITERATION), digests_by_all_ranks, tensors=False) is None
        else:
            stack.enter_context(patch.object(TorchArchive, "check_elements", lambda *_: None))
        checkpoint.resume(engine, folder, _ITERATION)
    ended = time.perf_counter()
    return ended - began, ended - built


def _forget(path: Path) -> None:
    """Takes a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
