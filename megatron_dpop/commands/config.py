"""`megatron-dpop config`: configs of other trainers as ours."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from dpop_base.errors import UserError, first_line


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "config",
        help="turn another trainer's config into ours",
        epilog="example: megatron-dpop config from dpo.yaml --gpus 8",
    )
    verbs = parser.add_subparsers(required=True, metavar="{from}")
    come = verbs.add_parser(
        "from",
        help="a TRL or LLaMA-Factory YAML",
        description="Prints the config that trains the same: of a YAML for TRL's DPOTrainer, as alignment-handbook has "
        "them, or for LLaMA-Factory. What has no counterpart, and what had to be assumed, is said on standard error.",
        epilog="example: megatron-dpop config from dpo.yaml --gpus 8 --output config.yaml",
    )
    come.add_argument("file", type=Path, metavar="FILE", help="the other trainer's YAML file")
    come.add_argument("--gpus", type=int, default=1, metavar="N", help="that it was written for (default 1)")
    come.add_argument("--output", type=Path, metavar="CONFIG", help="where to write (default: standard output)")
    come.set_defaults(run=_from)


def _from(arguments: argparse.Namespace) -> int:
    from dpop_base.files import write_text
    from megatron_dpop.config.foreign import convert
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.config.plain_yaml import read_yaml

    path = arguments.file
    if arguments.gpus < 1:
        raise UserError(f"--gpus: {arguments.gpus} is not a number of GPUs; give 1 or more")
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({first_line(error)}); fix the file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys, not {type(tree).__name__}")
    found = convert(tree, gpus=arguments.gpus)
    config_from_dict(found.config, origin=str(path))
    for line in found.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    for line in found.left_out:
        print(f"no counterpart: {line}", file=sys.stderr)
    text = f"# From {path.name}, a config of {found.trainer}.\n{yaml.safe_dump(found.config, sort_keys=False)}"
    if arguments.output is None:
        print(text, end="")
    else:
        write_text(arguments.output, text)
        print(arguments.output)
    return 0
