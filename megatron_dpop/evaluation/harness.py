"""lm-evaluation-harness on one model: tasks by name, loaded before the model is, and their scores."""

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError, first_line
from dpop_base.extras import missing
from dpop_base.progress import track
from megatron_dpop.evaluation.load import load_model
from megatron_dpop.evaluation.subject import Subject

TASKS = Path(__file__).parent / "tasks"
LOCAL = "gsm_symbolic"


@dataclass(frozen=True)
class Options:
    """`limit`: problems of each task, the first ones; `chat_template`: None is each task's own choice."""

    batch_size: int | str = 8
    limit: int | None = None
    chat_template: bool | None = None
    backend: str = "transformers"
    model_arguments: str = ""  # the harness's, such as "dtype=float32,parallelize=True"


class Harness:
    """Knows the harness's tasks and those of this package; raises UserError for names that are neither."""

    def __init__(self, names: Sequence[str]) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise UserError(f"eval: {missing('lm-evaluation-harness', 'eval')}") from None
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.names = tuple(dict.fromkeys(names))
        # Without the harness's thousands of files, of which reading takes seconds, where none of them is asked for.
        self.manager = TaskManager(include_path=str(TASKS), include_defaults=set(self.names) != {LOCAL})
        known = self.manager.all_tasks
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists the harness's"
                raise UserError(f"--tasks: the harness has no task {name}; {fix}")
            self._load(name)

    def _load(self, name: str) -> None:
        """Finds out before the model is loaded whether the task's data can be had."""
        try:
            self.manager.load([name])
        except OSError as error:
            raise UserError(
                f"--tasks {name}: its data cannot be read ({first_line(error)}); "
                f"run where the Hugging Face hub can be reached, or with its cache (HF_HOME) filled there"
            ) from None

    def evaluate(self, subject: Subject, options: Options) -> dict[str, dict[str, Any]]:
        """The harness's results by the name of the task or group that was asked for."""
        model = load_model(
            subject, backend=options.backend, batch_size=options.batch_size, arguments=options.model_arguments
        )
        has_template = bool(getattr(model.tokenizer, "chat_template", None)) and subject.chat_template != "none"
        if options.chat_template and not has_template:
            raise UserError(f"--chat-template: {subject.model} has none; leave the option out")
        return {name: self._evaluate(name, model, options, has_template=has_template) for name in self.names}

    def _evaluate(self, name: str, model: Any, options: Options, *, has_template: bool) -> dict[str, Any]:
        from lm_eval import evaluator, simple_evaluate
        from lm_eval.api import task

        evaluator.get_git_commit_hash = lambda: None  # asks git of whatever folder one is in, and git may complain
        task.tqdm = _prompts  # a bar of its own for each of 57 subjects would stay on the screen

        # The leaderboard applied no template; the local task's prompts are those that chat models were trained on.
        wanted = name == LOCAL if options.chat_template is None else options.chat_template
        found: dict[str, Any] = simple_evaluate(
            model=model,
            tasks=[name],
            task_manager=self.manager,
            batch_size=options.batch_size,
            limit=options.limit,
            apply_chat_template=wanted and has_template,
        )
        dtype = str(getattr(getattr(model, "model", None), "dtype", "unknown")).removeprefix("torch.")
        return {**found, "chat_template": wanted and has_template, "dtype": dtype}


def _prompts(documents: Iterable[Any], total: int | None = None, **_: Any) -> Iterator[Any]:
    return track(documents, "prompts", total=total)
