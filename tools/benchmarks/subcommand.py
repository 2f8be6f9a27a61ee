"""How a benchmark becomes a word of `tools/benchmark.py`."""

import argparse
import sys
from typing import Any


def subcommand(subparsers: Any, module: str, help: str, *, example: str) -> argparse.ArgumentParser:
    """Adds a module's benchmark under the module's own name, described by its docstring. Its `run` is called."""
    found = sys.modules[module]
    name = module.rpartition(".")[2]
    parser = subparsers.add_parser(name, help=help, description=found.__doc__, epilog=f"example: {example}")
    parser.set_defaults(run=found.run)
    return parser
