"""Options that `megatron-dpop data`'s commands share: where rows are, which column is what, how texts are written."""

import argparse
import json
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from megatron_dpop.data.files.rows import Location
from megatron_dpop.data.templates import PLAIN, PromptFormat
from megatron_dpop.data.tokenizer import TextTokenizer, load_tokenizer


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="parquet, JSON Lines, JSON, CSV, TSV or Arrow; a pattern, folder or hub dataset")
    parser.add_argument("--split", help="of a folder or hub dataset that has several")
    parser.add_argument("--subset", help="of a folder or hub dataset that has several configurations")
    parser.add_argument("--revision", help="of a hub dataset: branch, tag or commit")
    add_columns(parser)


def add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="ROLE:COLUMN,...",
        help="which column is what, where names do not tell: prompt:question,chosen:good,rejected:bad",
    )


def source_of(args: argparse.Namespace) -> Location:
    return Location(args.file, args.split, args.subset, args.revision)


def add_tokenizer(parser: argparse.ArgumentParser, use: str) -> None:
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=use)
    parser.add_argument("--chat-template", help="a template's name or file, or `none` for plain text")
    parser.add_argument(
        "--chat-template-kwargs", metavar="JSON", help="of the template: '{\"enable_thinking\": false}'"
    )
    parser.add_argument("--template-date", metavar="DAY", help="what a template is told is today's date")
    parser.add_argument("--prompt-prefix", default="", metavar="TEXT", help="of plain text, before every prompt")
    parser.add_argument("--answer-separator", default="", metavar="TEXT", help="of plain text, before the answer")


def tokenizer_of(args: argparse.Namespace) -> TextTokenizer | None:
    """None where no tokenizer was given; UserError for what would have no effect."""
    form = PromptFormat(
        args.chat_template,
        _arguments(args.chat_template_kwargs),
        args.template_date,
        prefix=args.prompt_prefix,
        separator=args.answer_separator,
    )
    if args.tokenizer is None:
        if form != PromptFormat():
            raise UserError("data: a chat template and what goes with it need --tokenizer")
        return None
    is_plain = form.chat_template == PLAIN
    if is_plain and form.arguments:
        raise UserError("--chat-template-kwargs: there is no template to take them; --chat-template is none")
    if not is_plain and (form.prefix or form.separator):
        raise UserError("--prompt-prefix and --answer-separator are of plain text: give --chat-template none too")
    return load_tokenizer(args.tokenizer, form)


def _arguments(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f'--chat-template-kwargs: {text!r} is no JSON object, such as {{"enable_thinking": false}}')
    return found


def _columns(text: str) -> dict[str, str]:
    """`prompt:question,chosen:good` as a mapping of roles to columns; YAML's braces and spaces may be there."""
    found = {}
    for part in text.strip().strip("{}").split(","):
        role, colon, column = part.partition(":")
        if not colon or not role.strip() or not column.strip():
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no role:column, such as prompt:question")
        found[role.strip()] = column.strip()
    return found
