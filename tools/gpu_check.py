"""Checks a new machine or image before a job: versions, kernels against fp64, rates beside what `plan` assumes, a step.

    python tools/gpu_check.py                  # under five minutes on one GPU, under one on a CPU
    python tools/gpu_check.py --parts versions exact
    python tools/gpu_check.py --json check.json

Prints one table; exits with 1 where something missed. On a CPU it checks what a CPU can: that all runs, and the parts
that need no GPU against fp64.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gpu_checks.finding import HEADER, CheckResult, attempted

from megatron_dpop.config.schema import ParallelConfig
from megatron_dpop.runtime import processes

PARTS = ("versions", "exact", "rates", "step")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", choices=("72b", "7b"), default="72b", help="whose layers the step has, on a GPU")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--vocabulary", type=int, default=16384, help="of the step's model; the whole 152064 needs memory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the findings here too")
    options = parser.parse_args(arguments)
    found = []
    print(HEADER, flush=True)
    for finding in findings(options):
        found.append(finding)
        print(finding.row(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(finding) for finding in found], indent=1))
    missed = sum(finding.verdict == "MISS" for finding in found)
    print(f"\n{len(found)} findings, {missed} missed")
    return int(missed > 0)


def findings(options: argparse.Namespace) -> Iterator[CheckResult]:
    device = processes.initialize(ParallelConfig(), seed=0)
    # Nothing of Megatron-Core may be imported before the device is chosen.
    from gpu_checks import exact, slice, speeds, versions

    checks = {"versions": versions.check, "exact": exact.check, "rates": speeds.check}
    for part in options.parts:
        if part in checks:
            yield from attempted(part, part, partial(checks[part], device))
            continue
        gpu = device.type == "cuda"
        name = options.model if gpu else "tiny"
        sizes = {"row_tokens": 2560, "rows": 1, "layers": 2, "vocabulary": 512}
        if gpu:
            sizes = {"row_tokens": 8192, "rows": 4, "layers": options.layers, "vocabulary": options.vocabulary}
        for fp8 in (None, "tensorwise", "blockwise") if gpu else (None,):
            step = partial(slice.check, device, name, fp8=fp8, **sizes)
            yield from attempted("step", f"{name}, {fp8 or 'bf16'}", step)
    processes.shut_down()


if __name__ == "__main__":
    sys.exit(main())
