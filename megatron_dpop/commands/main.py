"""`megatron-dpop`: one command, one table of sub-commands."""

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from dpop_base.errors import UserError, escape_what_output_lacks
from dpop_base.os_errors import explain_os_error
from dpop_base.version import project_version
from megatron_dpop.commands import analyze, clean, config, data, eval, plan, report, train
from megatron_dpop.config.load import blamed
from megatron_dpop.runtime import exits
from megatron_dpop.runtime.rank import launched
from megatron_dpop.runtime.stop import StoppedError, UnhealthyError

LOST_PEER = "by peer"  # gloo and NCCL: "Connection closed by peer", "Connection reset by peer"


def run(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or one of `megatron_dpop.runtime.exits` and a line on standard error."""
    escape_what_output_lacks()
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    parsed, rest = parser.parse_known_args(words)
    if rest and not getattr(parsed, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.overrides = rest
    try:
        code = int(parsed.run(parsed) or 0)
        sys.stdout.flush()
        return code
    except UserError as error:
        exits.report("error", blamed(str(error), rest))
        return exits.BAD_INPUT
    except UnhealthyError as error:
        exits.report("unhealthy", str(error))
        return exits.UNHEALTHY
    except StoppedError:
        return exits.STOPPED
    except BrokenPipeError:
        # Whoever read our output has left; nothing that Python still flushes at its end may complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    except KeyboardInterrupt:
        print("megatron-dpop: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT  # as a shell names the end by that signal
    except Exception as error:
        if (line := explain_os_error(error)) and not _may_appear(error):
            exits.report("error", line)
            return exits.BAD_INPUT
        if LOST_PEER in str(error):
            exits.report("lost", "another rank has ended, and this one cannot go on without it; see why in its log")
            return exits.FAILED
        if not getattr(error, "is_explained", False):
            traceback.print_exc()
        exits.report("failed", str(error) or type(error).__name__)
        return exits.FAILED


def _may_appear(error: Exception) -> bool:
    """A file that a rank misses may be one that another machine has just written."""
    return launched() and isinstance(error, OSError) and error.errno == errno.ENOENT


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-dpop",
        description="Preference training (DPOP, DPO, IPO, ...) on Megatron-Core.",
        epilog="example: megatron-dpop train config.yaml",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {project_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    train.register(subparsers)
    plan.register(subparsers)
    data.register(subparsers)
    report.register(subparsers)
    eval.register(subparsers)
    analyze.register(subparsers)
    clean.register(subparsers)
    config.register(subparsers)
    return parser
