"""Ours against TRL's DPOTrainer: the same weights, tokens, order, optimizer, precision and threads, steps in turn.

Before anything is said of speed, the losses must agree: at step 0 both are ln 2, afterwards they may differ by what
rounding makes of the same gradients.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS, TRL_DEFAULT, ContenderRun, Task
from benchmarks.made_up_pairs import KINDS
from benchmarks.report import Report, markdown
from benchmarks.subcommand import subcommand
from benchmarks.turns import run_in_turns
from dpop_base.errors import UserError

# How far the losses of two right trainers may lie apart, at beta 0.1 and learning rate 5e-6. In bf16 a completion's
# log-probability carries about half a nat of rounding (docs/numerics.md), times beta 0.05; a step is a mean of 8 pairs.
LOSS_TOLERANCE = {"bf16": 0.05, "fp32": 2e-4}


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py compare MODEL pairs.parquet   or   ... compare MODEL ultrafeedback-like"
    parser = subcommand(subparsers, __name__, "our pairs a second against TRL's", example=example)
    parser.add_argument("model", type=Path, metavar="MODEL", help="Hugging Face folder")
    parser.add_argument("pairs", metavar="PAIRS", help=f"a file of pairs, or made-up ones: {', '.join(KINDS)}")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of: {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--steps", type=int, default=5, help="the first one warms up and is not counted")
    parser.add_argument("--batch-pairs", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--row-tokens", type=int, default=4096)


def run(options: argparse.Namespace) -> Report:
    if options.steps < 2:
        raise UserError("--steps: the first step warms up; give at least 2")
    precomputed = f"TRL, precomputed, {min(8, options.batch_pairs)} pairs at once"
    names = options.contenders or [OURS.name, TRL_DEFAULT.name, precomputed]
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            model=options.model,
            pairs=options.pairs,
            steps=options.steps,
            batch_pairs=options.batch_pairs,
            precision=options.precision,
            threads=options.threads,
            max_tokens=options.max_tokens,
            row_tokens=options.row_tokens,
            scratch=Path(scratch),
        )
        outcomes = run_in_turns(task, [CONTENDERS[name] for name in names])
    return summary(task, outcomes)


def summary(task: Task, outcomes: dict[str, ContenderRun]) -> Report:
    """The table; `ok` only if all contenders train to the same losses."""
    first, *_ = outcomes.values()
    tolerance = LOSS_TOLERANCE[task.precision]
    rows, numbers, apart = [], {}, []
    for name, outcome in outcomes.items():
        seconds = outcome.step_seconds[1:]
        ratios = _ratios(outcome.step_seconds, first.step_seconds)
        busy_ratios = _ratios(outcome.processor_seconds, first.processor_seconds)
        difference = max(abs(a - b) for a, b in zip(outcome.losses, first.losses, strict=True))
        if difference > tolerance:
            apart.append(f"{name} (by {difference:.2g})")
        tokens = statistics.mean(outcome.tokens[1:])
        typical = statistics.median(seconds)
        rows.append(
            [
                name,
                f"{task.batch_pairs / typical:.3f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{statistics.median(busy_ratios):.2f}",
                f"{tokens / typical:.0f}",
                f"{outcome.peak_bytes / 2**30:.2f}",
                f"{outcome.peak_bytes / first.peak_bytes:.2f}",
                f"{difference:.1e}",
            ]
        )
        numbers[name] = {
            **asdict(outcome),
            "median_ratio": statistics.median(ratios),
            "median_processor_ratio": statistics.median(busy_ratios),
            "loss_difference": difference,
        }
    header = ["trainer", "pairs/s", "s a step", "time a step, ratio", "its spread", "processor time, ratio", "tokens/s"]
    table = markdown([*header, "peak memory, GiB", "memory, ratio", "loss apart by"], rows)
    lines = [
        f"{task.pairs}: {task.batch_pairs} pairs a step, {task.precision}, {task.threads} threads, "
        f"medians of {task.steps - 1} steps after one of warm-up; ratios are to {next(iter(outcomes))}, step by step",
        "",
        table,
        "",
        f"losses, step by step: {_losses(first.losses)}",
        _verdict(apart, tolerance),
    ]
    return Report("\n".join(lines), numbers, ok=not apart)


def _ratios(mine: Sequence[float], base: Sequence[float]) -> list[float]:
    """Step by step, the first one left out: what slowed one trainer in a round slowed the other."""
    return [one / other for one, other in zip(mine[1:], base[1:], strict=True)]


def _losses(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _verdict(apart: Sequence[str], tolerance: float) -> str:
    if apart:
        return f"NOT THE SAME LOSSES (more than {tolerance} apart): {'; '.join(apart)}. The times compare nothing."
    return f"all train to the same losses, to {tolerance}"
