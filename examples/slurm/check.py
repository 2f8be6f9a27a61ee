"""Dry-runs several `megatron-dpop` commands in one process: `check.py RANKS WORDS [-- WORDS]...`

Prints what each would do; the first that is refused ends it, with its line and exit code 2.
"""

import sys
from itertools import groupby

from megatron_dpop.commands.main import run


def main(ranks: str, words: list[str]) -> int:
    for is_separator, command in groupby(words, lambda word: word == "--"):
        code = 0 if is_separator else run([*command, "--dry-run", "--ranks", ranks])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
