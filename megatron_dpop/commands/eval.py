"""`megatron-dpop eval`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpop_base.errors import UserError

if TYPE_CHECKING:
    from megatron_dpop.evaluation.harness import Harness, Options
    from megatron_dpop.evaluation.subject import Subject

BACKENDS = ("transformers", "vllm")
TASKS = (
    "open_llm_leaderboard is the six tasks of the Open LLM Leaderboard with its shots; gsm_symbolic needs no network"
)


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="accuracy of the exported model, by lm-evaluation-harness",
        description="Runs tasks of lm-evaluation-harness on a run's hf/ folder or any Hugging Face folder, prints the "
        "scores and writes them as JSON, one file a task. Needs the extra `eval` (docs/install.md).",
        epilog="example: megatron-dpop eval runs/dpop --tasks gsm_symbolic --limit 100",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RUN_OR_HF",
        help="runs' folders, Hugging Face folders or hub models; several are shown side by side",
    )
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help=f"the harness's names; {TASKS}")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each task")
    parser.add_argument("--batch-size", default="8", metavar="N", help="sequences at once, or auto (default 8)")
    parser.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        help="write prompts with the model's chat template (default: for gsm_symbolic where the model has one)",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0], help="vllm: where it is installed, on a GPU"
    )
    parser.add_argument("--samples", action="store_true", help="also write every problem, answer and score")
    parser.add_argument(
        "--model-args",
        default="",
        metavar="KEY=VALUE,...",
        help="the harness's, such as dtype=float32,parallelize=True",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the scores go (default: RUN/eval; else eval/NAME); of several models FOLDER/NAME",
    )
    parser.set_defaults(run=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from checkpoint_convert.weights import check_converted
    from megatron_dpop.evaluation.harness import Harness, Options
    from megatron_dpop.evaluation.results import model_names, side_by_side
    from megatron_dpop.evaluation.subject import find_subject
    from megatron_dpop.training.inputs import resolve_model

    options = Options(
        batch_size=_batch_size(arguments.batch_size),
        limit=arguments.limit,
        chat_template=arguments.chat_template,
        backend=arguments.backend,
        model_arguments=arguments.model_args,
    )
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit: {options.limit} is no number of problems; give 1 or more")
    subjects = [find_subject(resolve_model(model, key="eval")) for model in arguments.models]
    names = model_names([str(subject.model) for subject in subjects])
    if len(set(names)) < len(names):
        raise UserError(f"eval: {', '.join(arguments.models)} names a model twice; name each once")
    for subject in subjects:
        check_converted(subject.model)
    harness = Harness(arguments.tasks)
    found: dict[str, list[dict[str, Any]]] = {}
    for subject, name in zip(subjects, names, strict=True):
        folder = subject.results
        if arguments.output is not None:
            folder = arguments.output / name if len(subjects) > 1 else arguments.output
        for summary in _scores(harness, subject, options, folder, samples=arguments.samples):
            found.setdefault(summary["task"], []).append(summary)
    if len(subjects) > 1:
        for task, summaries in found.items():
            Console(highlight=False).print(side_by_side(task, summaries))
    return 0


def _scores(
    harness: "Harness", subject: "Subject", options: "Options", folder: Path, *, samples: bool
) -> Iterator[dict[str, Any]]:
    """Yields one model's summary of each task, shown and written."""
    from rich.console import Console

    from dpop_base.files import write_json, write_text
    from megatron_dpop.evaluation.results import samples_of, summarise, table_of

    for name, found in harness.evaluate(subject, options).items():
        summary = summarise(name, found, subject, options)
        Console(highlight=False).print(table_of(summary))
        if summary.get("problems_in_training"):
            print(f"{name}: {summary['problems_in_training']} of these problems are in the run's training data")
        if samples:
            lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in samples_of(found))
            write_text(folder / f"{name}.samples.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(folder / f"{name}.json", summary)
        print(folder / f"{name}.json")
        yield summary


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch-size: {text} is neither auto nor a number of at least 1")
    return int(text)
