"""
Feeds the commands with damaged, contradictory and hostile inputs. Each must be used or refused: exit code 0 or 2, one
line, no traceback, within ten seconds and 3 GiB, and nothing half-written.

    python tools/fuzz.py --seconds 120                         # a fresh seed, which is printed
    python tools/fuzz.py --seed 7 --kind config --number 1234  # one finding again
"""

import argparse
import secrets
import sys
from collections import Counter
from collections.abc import Sequence

from fuzzing.kinds import KINDS
from fuzzing.session import try_inputs

SHOWN = 20
PROGRESS_EVERY = 500


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="how long to go on (default: 120, or all of --count)")
    parser.add_argument("--count", type=int, help="inputs of each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="only this kind; may be given again")
    parser.add_argument("--seed", type=int, help="default: a fresh one")
    parser.add_argument("--number", type=int, help="only the input of this number")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    names = options.kind or list(KINDS)
    count = 1 if options.number is not None else options.count
    seconds = 120.0 if options.seconds is None and count is None else options.seconds
    print(f"seed {seed}", flush=True)
    tried, found, kinds = 0, 0, Counter[str]()
    for finding in try_inputs(names, seed, first=options.number or 0, seconds=seconds, count=count):
        tried += 1
        if tried % PROGRESS_EVERY == 0:
            print(f"{tried} inputs, {found} findings", flush=True)
        if finding is None:
            continue
        found += 1
        kinds[f"{finding.kind}: {finding.wrong}"] += 1
        if kinds[f"{finding.kind}: {finding.wrong}"] <= SHOWN:
            again = f"--seed {seed} --kind {finding.kind} --number {finding.number}"
            print(f"\n{finding.wrong}: python tools/fuzz.py {again}\n{finding.detail}", flush=True)
    print(f"{tried} inputs, {found} findings (seed {seed})")
    for what, times in kinds.most_common():
        print(f"{times:>6}  {what}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
