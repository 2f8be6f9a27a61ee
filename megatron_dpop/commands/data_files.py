"""`megatron-dpop data split` and `data filter`: files made of a file's rows as they stand."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from dpop_base.choices import EXAMPLE_KINDS
from dpop_base.errors import UserError
from megatron_dpop.commands.source_options import add_source, add_tokenizer, source_of, tokenizer_of
from megatron_dpop.data.inspection.select import Selected, filter_rows, split_rows
from megatron_dpop.data.inspection.where import NAMES, Condition, conditions_of


def register(verbs: Any) -> None:
    _register_split(verbs)
    _register_filter(verbs)


def _register_split(verbs: Any) -> None:
    parser = verbs.add_parser(
        "split",
        help="hold out rows whose prompts the rest has not",
        epilog="example: megatron-dpop data split pairs.jsonl --output split --count 100",
    )
    add_source(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="train.jsonl, validation.jsonl")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--count", type=int, metavar="ROWS", help="at most so many rows are held out")
    size.add_argument("--fraction", type=float, metavar="SHARE", help="or at most this share of all, such as 0.02")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.set_defaults(run=_run_split)


def _run_split(args: argparse.Namespace) -> int:
    if args.count is not None and args.count < 1:
        raise UserError(f"data split: --count {args.count} holds out nothing; give at least 1")
    if args.fraction is not None and not (math.isfinite(args.fraction) and 0 < args.fraction < 1):
        raise UserError(f"data split: --fraction {args.fraction} is no share; give one between 0 and 1")
    selected = split_rows(
        source_of(args),
        args.output,
        count=args.count,
        fraction=args.fraction,
        seed=args.seed,
        columns=args.columns,
    )
    _say(selected)
    return 0


def _register_filter(verbs: Any) -> None:
    names = "; ".join(f"{name}: {meaning}" for name, meaning in NAMES.items())
    parser = verbs.add_parser(
        "filter",
        help="keep rows by numbers of their examples: distances, lengths, contradictions",
        description=f"Keeps rows all of whose examples fulfil every condition. Numbers: {names}.",
        epilog='example: megatron-dpop data filter pairs.jsonl --where "edit_distance < 0.2" --output near.jsonl',
    )
    add_source(parser)
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help="name, sign, number")
    parser.add_argument("--ches-below", type=float, metavar="LIMIT", help="short for: ches_per_token < LIMIT")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores that `data inspect --model` wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON Lines: a name with .jsonl")
    add_tokenizer(parser, "counts tokens, for conditions on them")
    parser.add_argument("--kind", choices=EXAMPLE_KINDS, help="what the loss takes (default: what the file holds)")
    parser.set_defaults(run=_run_filter)


def _run_filter(args: argparse.Namespace) -> int:
    if args.ches_below is not None and not math.isfinite(args.ches_below):
        raise UserError(f"--ches-below: {args.ches_below} is no limit; give a number")
    conditions = conditions_of(args.where)
    if args.ches_below is not None:
        conditions.append(Condition("ches_per_token", "<", args.ches_below))
    if not conditions:
        raise UserError("data filter: no condition is given; add --where, such as --where 'edit_distance < 0.2'")
    selected = filter_rows(
        source_of(args),
        args.output,
        conditions,
        columns=args.columns,
        kind=args.kind,
        tokenizer=tokenizer_of(args),
        scores=args.scores,
    )
    _say(selected)
    return 0


def _say(selected: Selected) -> None:
    for path, rows in selected.written.items():
        print(f"{path}: {rows} rows")
    for reason, rows in selected.left_out.most_common():
        print(f"left out {rows}: {reason}", file=sys.stderr)
