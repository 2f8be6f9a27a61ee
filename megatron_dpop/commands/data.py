"""`megatron-dpop data`: makes preference pairs from source datasets and shows what a file holds."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpop_base.choices import EXAMPLE_KINDS
from dpop_base.errors import UserError
from megatron_dpop.commands import data_files
from megatron_dpop.commands.source_options import add_source, add_tokenizer, source_of, tokenizer_of
from megatron_dpop.data.files.rows import Location
from megatron_dpop.data.inspection.render import print_report, warnings
from megatron_dpop.data.inspection.report import inspect_file, percentiles
from megatron_dpop.data.makers.gsm_symbolic import make_gsm_symbolic
from megatron_dpop.data.makers.make import make_pairs
from megatron_dpop.data.makers.pairs_file import datasheet_lines

if TYPE_CHECKING:
    from megatron_dpop.analysis.scored_pairs import Scored

_MAKERS: dict[str, dict[str, Any]] = {
    "metamath": {
        "help": "worked answers: one intermediate calculation's result corrupted, the final answer untouched",
        "source": "meta-math/MetaMathQA, or its MetaMathQA-395K.json; GSM8K's files too",
        "example": "megatron-dpop data make metamath --source MetaMathQA-395K.json --output pairs --validation 1000",
    },
    "arc": {
        "help": "multiple choice: each wrong choice against the right one",
        "source": "allenai/ai2_arc, or ARC's parquet or JSON Lines files",
        "config": "ARC-Challenge",
        "example": "megatron-dpop data make arc --source ARC-Challenge-Train.jsonl --output pairs",
    },
    "hellaswag": {
        "help": "sentence endings: each wrong ending against the right one",
        "source": "Rowan/hellaswag, or its parquet or JSON Lines files",
        "example": "megatron-dpop data make hellaswag --source hellaswag_train.jsonl "
        "--validation-source hellaswag_val.jsonl --output pairs",
    },
}


def register(subparsers: Any) -> None:
    """Adds `data` and its sub-commands; the parsed arguments' `run(args)` works and returns the exit code."""
    data = subparsers.add_parser(
        "data",
        help="make preference pairs; look into a file of them, split it, filter it",
        epilog="example: megatron-dpop data inspect pairs.parquet",
    )
    verbs = data.add_subparsers(required=True, metavar="{make,inspect,split,filter}")
    make = verbs.add_parser(
        "make",
        help="make preference pairs from a source dataset",
        epilog="example: megatron-dpop data make gsm-symbolic --output pairs",
    )
    makers = make.add_subparsers(required=True, metavar="MAKER")
    _register_gsm_symbolic(makers)
    for name, facts in _MAKERS.items():
        _register_maker(makers, name, facts)
    _register_inspect(verbs)
    data_files.register(verbs)


def _register_gsm_symbolic(makers: Any) -> None:
    parser = makers.add_parser(
        "gsm-symbolic",
        help="worked arithmetic problems, generated: one intermediate result corrupted",
        epilog="example: megatron-dpop data make gsm-symbolic --output pairs --train 320 --validation 64",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    parser.add_argument("--train", type=int, default=320, metavar="PAIRS", help="training pairs (default 320)")
    parser.add_argument("--validation", type=int, default=64, metavar="PAIRS", help="validation pairs (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.set_defaults(run=_run_gsm_symbolic)


def _run_gsm_symbolic(args: argparse.Namespace) -> int:
    sheet = make_gsm_symbolic(args.output, train=args.train, validation=args.validation, seed=args.seed)
    print("\n".join(datasheet_lines(sheet)))
    return 0


def _register_maker(makers: Any, name: str, facts: dict[str, Any]) -> None:
    parser = makers.add_parser(name, help=facts["help"], epilog=f"example: {facts['example']}")
    parser.add_argument("--source", required=True, help=f"a file, a folder or a hub dataset: {facts['source']}")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    parser.add_argument("--config", default=facts.get("config"), help="the hub dataset's configuration")
    parser.add_argument("--split", default="train", help="the hub dataset's or folder's split (default train)")
    parser.add_argument("--validation", type=int, default=0, metavar="PAIRS", help="pairs to hold out (default 0)")
    parser.add_argument("--validation-source", help="make the validation pairs of another file instead")
    parser.add_argument("--validation-split", help="make the validation pairs of another split instead")
    parser.add_argument(
        "--few-shot",
        type=int,
        metavar="N",
        help="prompts for base models, as lm-evaluation-harness writes them, after N solved training questions",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core, at most 8)")
    parser.set_defaults(run=_run_maker, maker=name)


def _run_maker(args: argparse.Namespace) -> int:
    if args.validation < 0 or (args.workers is not None and args.workers < 1):
        raise UserError("data make: --validation counts pairs from 0, --workers processes from 1")
    if args.few_shot is not None and args.few_shot < 0:
        raise UserError(f"--few-shot: {args.few_shot} is no number of examples; give 0 or more")
    sheet = make_pairs(
        args.maker,
        args.output,
        source=args.source,
        config=args.config,
        split=args.split,
        validation=args.validation,
        validation_source=args.validation_source,
        validation_split=args.validation_split,
        few_shot=args.few_shot,
        seed=args.seed,
        workers=args.workers,
    )
    print("\n".join(datasheet_lines(sheet)))
    return 0


def _register_inspect(verbs: Any) -> None:
    parser = verbs.add_parser(
        "inspect",
        help="what a data file holds, and what would spoil a run",
        epilog="example: megatron-dpop data inspect pairs/train.parquet --tokenizer MODEL_FOLDER "
        "--max-tokens 2048 --other pairs/validation.parquet",
    )
    add_source(parser)
    add_tokenizer(parser, "counts tokens and shows what is scored")
    parser.add_argument("--max-tokens", type=int, help="counts what would be too long")
    parser.add_argument("--other", metavar="FILE", help="the other split: prompts in both are counted")
    parser.add_argument("--other-split", metavar="SPLIT", help="the other split of the same folder or hub dataset")
    parser.add_argument("--kind", choices=EXAMPLE_KINDS, help="what the loss takes (default: what the file holds)")
    parser.add_argument("--samples", type=int, default=1, help="examples to show (default 1)")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead")
    parser.add_argument("--model", metavar="MODEL", help="scores pairs (CHES): a Hugging Face folder or a checkpoint")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="where a line a pair goes, for data filter")
    parser.set_defaults(run=_run_inspect, takes_overrides=True)


def _run_inspect(args: argparse.Namespace) -> int:
    if args.model is not None:
        from megatron_dpop.commands.scores import run_scores

        return run_scores(args, _show_inspected)
    if args.overrides or args.scores:
        word = args.overrides[0] if args.overrides else "--scores"
        raise UserError(f"data inspect: {word} has no effect without --model, whose layout such words set")
    if args.max_tokens is not None and args.tokenizer is None:
        raise UserError("data inspect: --max-tokens needs --tokenizer, which counts them")
    return _show_inspected(args, None)


def _show_inspected(args: argparse.Namespace, scored: "Scored | None") -> int:
    tokenizer = tokenizer_of(args)
    other = Location(args.other) if args.other else None
    if args.other_split:
        other = Location(args.other or args.file, args.other_split, args.subset, args.revision)
    report = inspect_file(
        source_of(args),
        columns=args.columns,
        tokenizer=tokenizer,
        max_tokens=args.max_tokens,
        kind=args.kind,
        other=other,
        samples=args.samples,
    )
    if scored is not None:
        names = ("ches", "ches_per_token")
        ches = {name: percentiles([getattr(score, name) for score in scored.scores]) for name in names}
        report = replace(report, ches=ches, unscored=scored.too_long)
    if args.json:
        print(json.dumps({**report.to_json(), "warnings": warnings(report)}, indent=2, ensure_ascii=False))
    else:
        print_report(report, Console(highlight=False), tokenizer)
    return 0
