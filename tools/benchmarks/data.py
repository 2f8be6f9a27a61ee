"""What a run's start costs as the data grows: tokenising once, opening the cache, shapes of all pairs, plans of steps.

The pairs are made of a file's, repeated with a number in front of each prompt.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import resident_bytes
from benchmarks.report import Report, markdown
from benchmarks.subcommand import subcommand


@dataclass(frozen=True)
class Measurement:
    """Seconds, once each unless said otherwise."""

    pairs: int
    tokenise: float  # the first time: reading the file, tokenising, writing the cache
    open_cache: float  # every later time
    shapes: float  # lengths, FLOPs and order of all pairs, at every start
    plan_step: float  # which rows one step has, median of steps all over the epoch
    build_step: float  # that step's rows as tensors, median
    resident_bytes: int  # that opening and shapes added


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py data MODEL pairs.parquet --counts 1000 20000 400000"
    parser = subcommand(
        subparsers, __name__, "what a start costs, and the data of a step, as the data grows", example=example
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="Hugging Face folder, for its tokenizer")
    parser.add_argument("pairs", type=Path, metavar="PAIRS", help="Parquet file of pairs")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--batch-pairs", type=int, default=8)


def run(options: argparse.Namespace) -> Report:
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(options.pairs).to_pylist()
    found = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "pairs.jsonl"
            write_pairs(source, texts, count)
            found.append(measure(options, source, count, Path(folder) / "cache"))
    header = ["pairs", "tokenise, us a pair", "open the cache, s", "us a pair", "shapes, s", "us a pair"]
    header += ["plan a step, ms", "build a step, ms", "resident, bytes a pair"]
    rows = [
        [
            f"{m.pairs:,}",
            f"{m.tokenise / m.pairs * 1e6:.0f}",
            f"{m.open_cache:.3f}",
            f"{m.open_cache / m.pairs * 1e6:.2f}",
            f"{m.shapes:.3f}",
            f"{m.shapes / m.pairs * 1e6:.2f}",
            f"{m.plan_step * 1e3:.2f}",
            f"{m.build_step * 1e3:.2f}",
            f"{m.resident_bytes / m.pairs:.0f}",
        ]
        for m in found
    ]
    return Report(markdown(header, rows), [asdict(m) for m in found])


def write_pairs(path: Path, texts: list[dict[str, Any]], count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            text = texts[index % len(texts)]
            line = {"prompt": f"{index}. {text['prompt']}", "chosen": text["chosen"], "rejected": text["rejected"]}
            file.write(json.dumps(line) + "\n")


def measure(options: argparse.Namespace, source: Path, count: int, cache: Path) -> Measurement:
    from megatron_dpop.data.load import DataSource, load_dataset
    from megatron_dpop.engine.batches import dataset_shapes
    from megatron_dpop.rows.row import build_row
    from megatron_dpop.rows.schedule import plan_rows, step_examples

    def load() -> Any:
        return load_dataset(
            [DataSource(source, weight=1.0, name=None)],
            options.model,
            max_tokens=1024,
            cache=cache,
            kind="pair",
            progress=False,
        )

    _, tokenise = _timed(load)
    gc.collect()
    before = resident_bytes()
    dataset, open_cache = _timed(load)
    shapes, shape_seconds = _timed(lambda: dataset_shapes(dataset, share_prefix=True))
    _, order_seconds = _timed(lambda: step_examples(seed=0, step=0, batch=options.batch_pairs, examples=count))
    added = resident_bytes() - before
    planning, building = [], []
    for step in range(0, count // options.batch_pairs, max(1, count // options.batch_pairs // 20)):
        indices = step_examples(seed=0, step=step, batch=options.batch_pairs, examples=count)
        started = time.perf_counter()
        plan = plan_rows(
            indices, shapes.row_tokens, shapes.row_tokens, capacity_tokens=4096, multiple=64, data_parallel=1
        )
        planned = time.perf_counter()
        for row in plan.rows:
            build_row([dataset[index] for index in row], row, row_tokens=plan.row_tokens, share_prefix=True)
        planning.append(planned - started)
        building.append(time.perf_counter() - planned)
    return Measurement(
        pairs=count,
        tokenise=tokenise,
        open_cache=open_cache,
        shapes=shape_seconds + order_seconds,
        plan_step=sorted(planning)[len(planning) // 2],
        build_step=sorted(building)[len(building) // 2],
        resident_bytes=max(0, added),
    )


def _timed[Result](work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
