"""`python -m megatron_dpop.runtime.torchrun` starts one node's ranks, by those of torchrun's words that a job needs.

torchrun itself ends with 1 whatever its ranks end with, and is killed by SIGUSR1. A job script needs the code to tell a
run that wants to be requeued from one that was given bad input (see `megatron_dpop.runtime.exits`). And on one node its
ranks meet at a port that every machine can reach, through a store whose content it unpickles; here they do not.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dpop_base.errors import UserError
from megatron_dpop.runtime import exits
from megatron_dpop.runtime.launch import run_processes
from megatron_dpop.runtime.local_ranks import Logs, Placement


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_dpop.runtime.torchrun",
        description="Starts this node's ranks of a run, and keeps their exit code.",
        epilog="example: python -m megatron_dpop.runtime.torchrun --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 "
        "--master-port 29500 --nproc-per-node 8 -m megatron_dpop train config.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("--standalone", action="store_true", help="one node (also without it, where --nnodes is 1)")
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes (default 1)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="N", help="this node, from 0")
    parser.add_argument("--nproc-per-node", type=int, default=1, metavar="N", help="ranks of each node (default 1)")
    parser.add_argument(
        "--master-addr", default="", metavar="ADDRESS", help="of several nodes: where rank 0 is reached"
    )
    parser.add_argument(
        "--master-port", type=int, default=0, metavar="PORT", help="of several nodes: a free port there"
    )
    parser.add_argument("--log-dir", type=Path, metavar="FOLDER", help="a folder of output for each local rank")
    parser.add_argument(
        "--local-ranks-filter", default="0", metavar="N,N", help="with --log-dir: ranks to read here too (default 0)"
    )
    parser.add_argument("-m", "--module", action="store_true", help="SCRIPT is a module's name, as for python -m")
    parser.add_argument("script", metavar="SCRIPT", help="what each rank runs, with its words")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        placement = _placement(options)
        logs = _logs(options)
    except UserError as error:
        print(f"megatron-dpop: error: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it
    module = ["-m"] if options.module else []
    return run_processes([*module, options.script, *options.words], placement, logs)


def _placement(options: argparse.Namespace) -> Placement:
    nodes = 1 if options.standalone else options.nnodes
    if nodes < 1 or options.nproc_per_node < 1 or not 0 <= options.node_rank < nodes:
        raise UserError("--nnodes and --nproc-per-node count from 1, --node-rank from 0 to one less than --nnodes")
    if nodes > 1 and not (options.master_addr and 0 < options.master_port < 1 << 16):
        raise UserError(f"--nnodes: {nodes} nodes need --master-addr and --master-port, where rank 0 is reached")
    return Placement(options.nproc_per_node, options.node_rank, nodes, options.master_addr, options.master_port)


def _logs(options: argparse.Namespace) -> Logs | None:
    if options.log_dir is None:
        return None
    try:
        shown = frozenset(int(number) for number in options.local_ranks_filter.split(",") if number)
        options.log_dir.mkdir(parents=True, exist_ok=True)
    except ValueError:
        raise UserError(f"--local-ranks-filter: {options.local_ranks_filter} is no list of ranks") from None
    except OSError as error:
        raise UserError(f"--log-dir: {options.log_dir} cannot be made ({error.strerror})") from None
    return Logs(options.log_dir, shown)


if __name__ == "__main__":
    sys.exit(main())
