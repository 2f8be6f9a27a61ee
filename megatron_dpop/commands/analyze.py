"""`megatron-dpop analyze`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpop_base.errors import UserError
from megatron_dpop.commands.source_options import add_columns
from megatron_dpop.runtime.rank import Rank, check_ranks, launched

if TYPE_CHECKING:
    from megatron_dpop.analysis.analyze import Analysis
    from megatron_dpop.analysis.request import Request


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "analyze",
        help="log-probabilities token by token, before and after completions differ",
        description="Mean log-probability of the tokens before, at and after the first differing token of each pair, "
        "by the reference and by trained models: the paper's section 5. A run is compared with its reference. "
        "Any key of the config can be overridden: --section.key VALUE (VALUE is read as YAML).",
        epilog="example: megatron-dpop analyze runs/dpo runs/dpop --pairs pairs/validation.parquet --out tokens.html",
    )
    parser.add_argument(
        "subjects",
        nargs="+",
        type=Path,
        metavar="RUN_OR_MODEL",
        help="a run's folder, a Hugging Face folder or a Megatron checkpoint",
    )
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="preference pairs")
    add_columns(parser)
    parser.add_argument("--reference", metavar="MODEL", help="the model to compare with (default: the run's own)")
    parser.add_argument("--tensor", type=int, metavar="N", help="tensor-parallel ranks (default: the first run's)")
    parser.add_argument("--pipeline", type=int, metavar="N", help="pipeline stages (default: the first run's)")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of a table")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="writes a page with curves and heat maps")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="pairs that the page shows (default 8)")
    parser.set_defaults(run=_analyze, takes_overrides=True)


def _analyze(arguments: argparse.Namespace) -> int:
    from megatron_dpop.analysis.request import read_request

    layout = {"tensor": arguments.tensor, "pipeline": arguments.pipeline}
    words = [f"--parallel.{name}={size}" for name, size in layout.items() if size is not None]
    _check_page(arguments.out, arguments.samples)

    request = read_request(
        arguments.subjects,
        arguments.pairs,
        columns=arguments.columns,
        reference=arguments.reference,
        overrides=[*words, *arguments.overrides],
        has_layout=bool(words),
        progress=not launched(),
    )
    if launched():
        return _rank(request, arguments)
    from megatron_dpop.runtime import launch

    return launch.run_ranks(sys.argv[1:], launch.local_ranks(request.config.parallel.fewest_ranks))


def _check_page(page: Path | None, samples: int) -> None:
    if samples < 0:
        raise UserError(f"--samples: {samples} is no number of pairs; give 0 or more")
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        what = "is a folder" if page.is_dir() else "is in no existing folder"
        raise UserError(f"--out: {page} {what}; give the name of the HTML file to write")


def _rank(request: "Request", arguments: argparse.Namespace) -> int:
    from megatron_dpop.runtime import processes

    check_ranks(Rank.from_environment().world_size, request.config.parallel.fewest_ranks)
    device = processes.initialize(request.config.parallel, seed=0)
    from megatron_dpop.analysis.analyze import analyze

    analysis = analyze(request, device)
    if Rank.from_environment().rank == 0:
        _show(analysis, request, arguments)
    processes.shut_down()
    return 0


def _show(analysis: "Analysis", request: "Request", arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        from megatron_dpop.analysis.page import write_analysis

        write_analysis(analysis, request.tokenizer, arguments.out, samples=arguments.samples)
    if arguments.json:
        print(json.dumps(analysis.as_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from megatron_dpop.analysis.tables import terminal_table

    Console(highlight=False).print(terminal_table(analysis))
    if arguments.out is not None:
        print(arguments.out)
