"""Throughput, memory and time, as a table and as JSON: `python tools/benchmark.py {train,compare,...} --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import answers, attention, checkpoint, compare, convert, data, logprob, train
from benchmarks.environment import environment, one_line

from dpop_base.errors import UserError
from megatron_dpop.runtime.rank import Rank

BENCHMARKS = (train, compare, logprob, attention, data, convert, checkpoint, answers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for benchmark in BENCHMARKS:
        benchmark.register(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--json", type=Path, help="also write the numbers, and where they were taken, here")
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    try:
        report = options.run(options)
    except UserError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    if Rank.from_environment().rank == 0:
        where = environment()
        print(f"{one_line(where)}\n\n{report.text}")
        if options.json:
            options.json.write_text(json.dumps({"environment": where, "numbers": report.numbers}, indent=2) + "\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
