"""Rates of training steps: pairs, tokens and scored tokens a second, FLOP/s and MFU, parts of a step, memory.

Under torchrun or SLURM this is one rank of the config's layout; alone it is a layout of one rank. Any key of the config
can be overridden: --section.key VALUE. The run's folder is temporary, beside run.dir.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import made_up_pairs
from benchmarks.made_up_pairs import KINDS
from benchmarks.rates import FORMULA, Rates, rates, reachable_flops
from benchmarks.report import Report, markdown
from benchmarks.session import open_session
from benchmarks.subcommand import subcommand
from dpop_base.errors import UserError


def register(subparsers: Any) -> None:
    example = "torchrun --nproc-per-node 8 tools/benchmark.py train config.yaml --steps 10"
    parser = subcommand(subparsers, __name__, "rates of training steps, and where their time goes", example=example)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--steps", type=int, default=6, help="the first one warms up and is not counted")
    parser.add_argument(
        "--made-up",
        metavar="KIND",
        help=f"train on pairs of random tokens: {', '.join(KINDS)} or fixed:PROMPT,COMPLETION,COMMON (tokens)",
    )
    parser.add_argument("--made-up-pairs", type=int, default=10_000, metavar="N", help="how many there are of them")
    parser.add_argument("--peak-tflops", type=float, help="of one device, for MFU; default: its maker's statement")
    parser.add_argument("--profile", type=Path, metavar="TRACE", help="write torch's profile of one more step here")
    parser.set_defaults(takes_overrides=True)


def run(options: argparse.Namespace) -> Report:
    _restart_with_allocator_settings()
    from megatron_dpop.config import load_config

    words = [*options.overrides, "--train.steps", str(options.steps + 1), "--optimizer.warmup_steps", "0"]
    config = load_config(options.config, words)
    pairs = None
    if options.made_up:
        from megatron_dpop.training.inputs import resolve_model

        model = resolve_model(config.model.path, key="model.path")
        pairs = made_up_pairs(options.made_up, model, options.made_up_pairs)
        if pairs is None:
            raise UserError(f"--made-up: {options.made_up} is not known; choose {', '.join(KINDS)} or fixed:...")
    with open_session(config, pairs=pairs, timed_parts=True) as session:
        import torch.distributed as dist

        timed = [session.take_step() for _ in range(options.steps)]
        peak, whose = _peak(options.peak_tflops)
        found = rates(session, timed, devices=dist.get_world_size(), peak_flops=peak)
        if options.profile:
            _profile(session, options.profile)
    return Report(_text(found, whose), asdict(found))


def _peak(stated_tflops: float | None) -> tuple[float, str]:
    from megatron_dpop.runtime.devices import on_gpu
    from megatron_dpop.training.timing import device_peak_flops

    if stated_tflops is not None:
        return stated_tflops * 1e12, "as given"
    known = device_peak_flops()
    if known is not None:
        return known, "bf16, as the device's maker states it"
    assert not on_gpu(), "give --peak-tflops: nothing is known of this GPU"
    return reachable_flops(), "no peak is stated for this CPU: one bf16 product of 2048 x 2048 matrices, measured here"


def _text(found: Rates, whose_peak: str) -> str:
    rows = [
        ["seconds a step (median)", f"{found.step_seconds:.2f}"],
        ["spread", f"{found.spread_seconds[0]:.2f} to {found.spread_seconds[1]:.2f}"],
        ["first step, not counted", f"{found.first_step_seconds:.2f}"],
        ["pairs/s", f"{found.pairs_per_second:.3f}"],
        ["tokens/s", f"{found.tokens_per_second:.0f}"],
        ["scored tokens/s", f"{found.scored_tokens_per_second:.0f}"],
        ["model TFLOP/s a device", f"{found.model_tflops_per_device:.3f}"],
        ["MFU", "" if found.mfu is None else f"{found.mfu:.1%}"],
        ["tokens saved by sharing prefixes", f"{found.saved_tokens_fraction:.1%}"],
        ["FLOPs saved by sharing prefixes", f"{found.saved_flops_fraction:.1%}"],
        ["padding", f"{found.pad_fraction:.1%}"],
        ["peak memory, GiB", f"{found.peak_memory_bytes / 2**30:.2f}"],
        *([f"{part}, share of a step", f"{share:.1%}"] for part, share in found.parts.items()),
    ]
    peak = "" if found.peak_flops is None else f"; peak {found.peak_flops / 1e12:.2f} TFLOP/s ({whose_peak})"
    return f"{markdown(['', 'rank 0'], rows)}\n\n{FORMULA}{peak}"


def _profile(session: Any, path: Path) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as profiler:
        session.take_step()
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


def _restart_with_allocator_settings() -> None:
    """They are read when a process starts (`megatron_dpop.runtime.launch`, which gives them to its ranks)."""
    from megatron_dpop.runtime.launch import ALLOCATOR_SETTINGS

    if not ALLOCATOR_SETTINGS.keys() <= os.environ.keys():
        os.environ.update({**ALLOCATOR_SETTINGS, **os.environ})
        os.execv(sys.executable, [sys.executable, *sys.argv])
