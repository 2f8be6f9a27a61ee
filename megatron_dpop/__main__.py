"""`python -m megatron_dpop`, and the command `megatron-dpop`."""

import signal
import sys


def main() -> int:
    try:
        from megatron_dpop.commands.main import run  # takes a second, in which Ctrl-C may come
    except KeyboardInterrupt:
        print("megatron-dpop: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
