"""Turns the harness's results into what is kept in a run's folder and shown on a terminal."""

import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dpop_base.run_names import HF
from megatron_dpop.data.inspection.report import prompt_hash
from megatron_dpop.evaluation.harness import LOCAL, Options
from megatron_dpop.evaluation.problems import PROBLEMS, SEED, held_out_problems
from megatron_dpop.evaluation.subject import Subject

LEADERBOARD = "open_llm_leaderboard"
# What the leaderboard reported of each task, and averaged.
LEADERBOARD_METRICS = {
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    "mmlu": "acc",
    "truthfulqa_mc2": "acc",
    "winogrande": "acc",
    "gsm8k": "exact_match (strict-match)",
}


def summarise(name: str, found: dict[str, Any], subject: Subject, options: Options) -> dict[str, Any]:
    """One JSON object: what was evaluated, how, and each task's metrics with their standard errors."""
    summary: dict[str, Any] = {
        "task": name,
        "model": str(subject.model),
        "harness": importlib.metadata.version("lm_eval"),
        "chat_template": found["chat_template"],
        "backend": options.backend,
        "dtype": found["dtype"],
        "limit": options.limit,
        "batch_size": options.batch_size,
        "model_arguments": options.model_arguments,
        "scores": {task: _scores(task, found) for task in found["results"]},
    }
    if name == LEADERBOARD:
        values = [summary["scores"][task]["metrics"][metric]["value"] for task, metric in LEADERBOARD_METRICS.items()]
        summary["average"] = sum(values) / len(values)
    if name == LOCAL:
        summary["problem_seed"] = SEED
        summary["problems_in_training"] = _problems_in_training(subject, options.limit or PROBLEMS)
    return summary


def _scores(task: str, found: dict[str, Any]) -> dict[str, Any]:
    """Shots, problems and metrics of one task, or of a group without its shots and problems."""
    scores: dict[str, Any] = {}
    if task in found.get("n-shot", {}):
        scores["shots"] = found["n-shot"][task]
    if task in found.get("n-samples", {}):
        scores["problems"] = found["n-samples"][task]["effective"]
        scores["of"] = found["n-samples"][task]["original"]
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in found["results"][task].items():
        metric, _, filtered = key.partition(",")
        is_error = metric.endswith("_stderr")
        if isinstance(value, int | float) and filtered and not is_error:
            error = found["results"][task].get(f"{metric}_stderr,{filtered}")
            label = metric if filtered == "none" else f"{metric} ({filtered})"
            known = isinstance(error, float) and math.isfinite(error)
            metrics[label] = {"value": value, "stderr": error if known else None}
    return {**scores, "metrics": metrics}


def _problems_in_training(subject: Subject, count: int) -> int | None:
    """How many of the first problems the run trained on; None where its data are not known."""
    trained = subject.prompts_of_training()
    if trained is None:
        return None
    return sum(prompt_hash(question) in trained for question, _ in held_out_problems()[:count])


def samples_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each problem with its prompt, the model's answer and its scores, task by task."""
    return [
        {
            "task": task,
            "problem": sample["doc"],
            "prompt": sample["arguments"][0][0],
            "answer": sample["filtered_resps"],
            **{metric: sample[metric] for metric in sample["metrics"]},
        }
        for task, samples in found["samples"].items()
        for sample in samples
    ]


def table_of(summary: dict[str, Any]) -> Table:
    """A task's or group's scores; of the leaderboard its six tasks, each by the leaderboard's metric."""
    name = summary["task"]
    table = Table(f"{name}: {Path(summary['model'])}", "shots", "problems", "metric", "value", "± stderr")
    for column in table.columns[1:]:
        column.justify = "right"
    for task, scores in summary["scores"].items():
        shown = LEADERBOARD_METRICS.get(task) if name == LEADERBOARD else None
        for metric, score in scores["metrics"].items():
            if name == LEADERBOARD and metric != shown:
                continue
            error = "" if score["stderr"] is None else f"{score['stderr']:.4f}"
            counted = f"{scores['problems']} of {scores['of']}" if "problems" in scores else ""
            table.add_row(task, str(scores.get("shots", "")), counted, metric, f"{score['value']:.4f}", error)
    if "average" in summary:
        table.add_row("average", "", "", "", f"{summary['average']:.4f}", "", style="bold")
    return table


def side_by_side(name: str, summaries: Sequence[dict[str, Any]]) -> Table:
    """One task's or group's scores of several models, a column each, with their standard errors."""
    table = Table(name, "metric", *model_names([summary["model"] for summary in summaries]))
    for column in table.columns[2:]:
        column.justify = "right"
    for task, scores in summaries[0]["scores"].items():
        shown = LEADERBOARD_METRICS.get(task) if name == LEADERBOARD else None
        for metric in scores["metrics"]:
            if name != LEADERBOARD or metric == shown:
                values = [summary["scores"][task]["metrics"][metric] for summary in summaries]
                table.add_row(task, metric, *map(_with_error, values))
    if all("average" in summary for summary in summaries):
        table.add_row("average", "", *(f"{summary['average']:.4f}" for summary in summaries), style="bold")
    return table


def model_names(folders: Sequence[str]) -> list[str]:
    """Each folder's last parts, as few as tell them apart; of a run's export the run."""
    parts = [Path(folder).parts[:-1] if Path(folder).name == HF else Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)


def _with_error(score: dict[str, float | None]) -> str:
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
    return f"{score['value']:.4f}{error}"
