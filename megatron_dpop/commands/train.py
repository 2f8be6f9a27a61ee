"""`megatron-dpop train` and `megatron-dpop reference`."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from megatron_dpop.config import Config, load_config
from megatron_dpop.config.lengths import settle_lengths
from megatron_dpop.runtime.folder_lock import check_unlocked, sole_writer
from megatron_dpop.runtime.rank import Rank, check_ranks, launched
from megatron_dpop.runtime.stop import StoppedError, StopRequest

OVERRIDES = "Any key of the config can be overridden: --section.key VALUE (VALUE is read as YAML)."


def register(subparsers: Any) -> None:
    training = subparsers.add_parser(
        "train",
        help="train on preference pairs",
        description="Trains; under torchrun or SLURM this is one rank, otherwise it starts the ranks that the layout "
        f"needs on this machine. A run that was stopped goes on where it was. {OVERRIDES}",
        epilog="example: megatron-dpop train config.yaml --optimizer.lr 1e-6 --run.dir runs/slow",
    )
    training.set_defaults(run=_train)
    reference = subparsers.add_parser(
        "reference",
        help="compute and cache reference log-probabilities only",
        description=f"Computes what `train` would, into reference.cache or the run's folder. {OVERRIDES}",
        epilog="example: megatron-dpop reference config.yaml --reference.cache runs/reference",
    )
    reference.set_defaults(run=_reference)
    for parser in (training, reference):
        parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
        parser.add_argument("--quiet", action="store_true", help="say only what goes wrong, and how the run ended")
        parser.add_argument("--dry-run", action="store_true", help="only check what can be checked before a start")
        parser.add_argument(
            "--ranks", type=int, metavar="N", help="of a dry run: ranks that a launcher will start on GPUs"
        )
        parser.set_defaults(takes_overrides=True)


def _train(arguments: argparse.Namespace) -> int:
    return _start(arguments, is_training=True)


def _reference(arguments: argparse.Namespace) -> int:
    return _start(arguments, is_training=False)


def _start(arguments: argparse.Namespace, *, is_training: bool) -> int:
    stop = StopRequest()
    stop.listen()
    if not launched():
        stop.leave_at_once("before its ranks were started")
    try:
        return _with_config(arguments, stop, is_training=is_training)
    except StoppedError as stopped:
        if not launched():
            print(f"megatron-dpop: stopped {stopped}; the same command begins anew", file=sys.stderr)
        raise


def _with_config(arguments: argparse.Namespace, stop: StopRequest, *, is_training: bool) -> int:
    config = load_config(arguments.config, arguments.overrides)
    from megatron_dpop.training.template_date import date_words, with_date

    config = with_date(config)
    if launched() and not arguments.dry_run:
        return _rank(config, stop, is_training=is_training, quiet=arguments.quiet)
    fewest_ranks = config.parallel.fewest_ranks
    check_ranks(arguments.ranks or fewest_ranks, fewest_ranks)
    if not arguments.dry_run:
        check_unlocked(Path(config.run.dir))
    # Ranks that a launcher will start have other machines than this one, which may be a cluster's login node.
    for_gpus = True if arguments.dry_run and arguments.ranks is not None else None
    _check(config, is_training=is_training, quiet=arguments.quiet, for_gpus=for_gpus)
    if arguments.dry_run:
        _describe(config, arguments.ranks or fewest_ranks)
        return 0
    from megatron_dpop.runtime import launch

    Path(config.run.dir).mkdir(parents=True, exist_ok=True)  # where that is refused, no rank need be started
    return launch.run_ranks([*sys.argv[1:], *date_words(config)], launch.local_ranks(fewest_ranks))


def _check(config: Config, *, is_training: bool, quiet: bool, for_gpus: bool | None) -> None:
    """Everything that can be found wrong before a process is started."""
    from checkpoint_convert.locate import checkpoint_kind
    from megatron_dpop.tracking.disk import before, expected
    from megatron_dpop.tracking.run_folder import RunFolder
    from megatron_dpop.tracking.weights_and_biases import check_installed
    from megatron_dpop.training.identity import check_before_start
    from megatron_dpop.training.inputs import read_inputs

    if is_training:
        check_installed(config.logging.wandb)
    inputs = read_inputs(config, progress=not quiet, for_gpus=for_gpus)
    if is_training:
        RunFolder(settle_lengths(config, examples=len(inputs.train))).check()
        check_before_start(config, inputs)
    if quiet:
        return
    for dataset in (inputs.train, inputs.validation):
        for line in dataset.describe() if dataset else ():
            print(line, file=sys.stderr)
    batch, examples = config.train.global_batch_pairs, len(inputs.train)
    if batch > examples:
        repeats = f"a step takes some of the {examples} examples more than once"
        print(f"train.global_batch_pairs {batch}: {repeats}", file=sys.stderr)
    if config.train.epochs is not None:
        steps = settle_lengths(config, examples=len(inputs.train)).train.steps
        print(f"train.epochs {config.train.epochs:g}: {steps} steps", file=sys.stderr)
    if is_training:
        converts = checkpoint_kind(inputs.model) == "huggingface"
        need = expected(settle_lengths(config, examples=len(inputs.train)), inputs.architecture, converts=converts)
        print(before(config, need), file=sys.stderr)


def _describe(config: Config, ranks: int) -> None:
    """What a dry run found good; `run.dir` on a line of its own, for scripts."""
    parallel = config.parallel
    layout = f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context}"
    experts = (
        f", experts over {parallel.expert} x {parallel.expert_tensor}"
        if parallel.expert * parallel.expert_tensor > 1
        else ""
    )
    print(f"layout: {layout} x data {ranks // parallel.model_parallel} = {ranks} ranks{experts}")
    print(f"run.dir: {config.run.dir}")


def _rank(config: Config, stop: StopRequest, *, is_training: bool, quiet: bool) -> int:
    rank = Rank.from_environment()
    check_ranks(rank.world_size, config.parallel.fewest_ranks)
    with sole_writer(Path(config.run.dir)) if rank.rank == 0 else nullcontext():
        _work(config, stop, is_training=is_training, quiet=quiet)
    return 0


def _work(config: Config, stop: StopRequest, *, is_training: bool, quiet: bool) -> None:
    from megatron_dpop.runtime import processes

    device = processes.initialize(config.parallel, seed=config.train.seed)
    from megatron_dpop.tracking.run_folder import RunFolder
    from megatron_dpop.tracking.weights_and_biases import check_installed
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.template_date import with_date_of_rank_0
    from megatron_dpop.training.train import compute_references, train

    config = with_date_of_rank_0(config)
    inputs = read_inputs(config, progress=False)
    config = settle_lengths(config, examples=len(inputs.train))
    if is_training:
        RunFolder(config).check()
        check_installed(config.logging.wandb)
        train(config, inputs, device, stop, quiet=quiet)
    else:
        compute_references(config, inputs, device, stop, quiet=quiet)
