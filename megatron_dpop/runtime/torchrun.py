"""`python -m megatron_dpop.runtime.torchrun` takes torchrun's words and keeps the ranks' exit code.

torchrun itself ends with 1 whatever its ranks end with, and is killed by SIGUSR1. A job script needs the code to tell a
run that wants to be requeued from one that was given bad input (see `megatron_dpop.runtime.exits`).
"""

import os
import sys

from torch.distributed.run import parse_args, run

from megatron_dpop.runtime.launch import HANDED_ON, SECONDS_TO_SAVE, exit_code_of


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would set it, with a warning
    words = parse_args(sys.argv[1:])
    words.signals_to_handle, words.shutdown_timeout = HANDED_ON, SECONDS_TO_SAVE
    return exit_code_of(lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
