"""`megatron-dpop data inspect --model`: the ranks that score a file's pairs."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dpop_base.errors import UserError
from megatron_dpop.commands.source_options import source_of, tokenizer_of
from megatron_dpop.data.inspection.scores import write_scores
from megatron_dpop.runtime.rank import Rank, check_ranks, launched

if TYPE_CHECKING:
    from megatron_dpop.analysis.scored_pairs import Scored, ScoreRequest


def run_scores(args: argparse.Namespace, show: Callable[[argparse.Namespace, "Scored"], int]) -> int:
    """Starts the layout's ranks, or is one of them. The first one calls `show`, and writes the file of scores."""
    from megatron_dpop.analysis.scored_pairs import read_score_request

    if args.kind not in (None, "pair"):
        raise UserError(f"data inspect: --model scores pairs, and --kind is {args.kind}; leave it out")
    if args.scores is not None and args.scores.is_dir():
        raise UserError(f"--scores: {args.scores} is a folder; give the name of a file to write")
    request = read_score_request(args.model, args.file, max_tokens=args.max_tokens, overrides=args.overrides)
    args.tokenizer = args.tokenizer or Path(request.tokenizer)
    if launched():
        return _rank(request, args, show)
    from megatron_dpop.runtime import launch

    return launch.run_ranks(sys.argv[1:], launch.local_ranks(request.config.parallel.fewest_ranks))


def _rank(
    request: "ScoreRequest", args: argparse.Namespace, show: Callable[[argparse.Namespace, "Scored"], int]
) -> int:
    from megatron_dpop.runtime import processes

    check_ranks(Rank.from_environment().world_size, request.config.parallel.fewest_ranks)
    tokenizer = tokenizer_of(args)
    assert tokenizer is not None
    device = processes.initialize(request.config.parallel, seed=0)
    from megatron_dpop.analysis.scored_pairs import score_pairs

    scored = score_pairs(request, source_of(args), args.columns, tokenizer, device)
    if Rank.from_environment().rank == 0:
        if args.scores is not None:
            write_scores(args.scores, scored.scores)
        show(args, scored)
    processes.shut_down()
    return 0
