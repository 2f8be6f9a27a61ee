"""lm-evaluation-harness on one model: tasks by name, loaded before the model is, and their scores."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError, first_line
from dpop_base.extras import install_command, missing
from megatron_dpop.evaluation.subject import Subject

TASKS = Path(__file__).parent / "tasks"
LOCAL = "gsm_symbolic"


@dataclass(frozen=True)
class Options:
    """`limit`: problems of each task, the first ones; `chat_template`: None is each task's own choice."""

    batch_size: int | str = 8
    limit: int | None = None
    chat_template: bool | None = None
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
        self.manager = TaskManager(include_path=str(TASKS))
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
        model = _load_model(subject, options)
        has_template = bool(getattr(model.tokenizer, "chat_template", None)) and subject.chat_template != "none"
        if options.chat_template and not has_template:
            raise UserError(f"--chat-template: {subject.model} has none; leave the option out")
        return {name: self._evaluate(name, model, options, has_template=has_template) for name in self.names}

    def _evaluate(self, name: str, model: Any, options: Options, *, has_template: bool) -> dict[str, Any]:
        from lm_eval import evaluator, simple_evaluate

        evaluator.get_git_commit_hash = lambda: None  # asks git of whatever folder one is in, and git may complain

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
        return {**found, "chat_template": wanted and has_template}


def _load_model(subject: Subject, options: Options) -> Any:
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights: it runs into the harness's own
    try:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import simple_parse_args_string
    except ImportError as error:
        raise UserError(f"eval: {first_line(error)}; install it with: {install_command('eval')}") from None
    # The harness's own choice is "cuda" whatever the machine has; and CPUs generate faster in fp32 than in bf16.
    machine = {"device": "cuda"} if torch.cuda.is_available() else {"device": "cpu", "dtype": "float32"}
    given = simple_parse_args_string(options.model_arguments)
    ours = {"pretrained": str(subject.model), "batch_size": options.batch_size, "trust_remote_code": False}
    try:
        model = HFLM(**{**ours, **machine, **given})
    except TypeError as error:
        raise UserError(f"--model-args: {first_line(error)}; give the harness's arguments as key=value,...") from None
    except Exception as error:  # transformers raises nearly anything for a folder that is damaged
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{subject.model}: is code of its own (auto_map), which is not run unless you say so: read it, then "
                "add trust_remote_code=True to --model-args"
            ) from None
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise UserError(
            f"{subject.model}: cannot be loaded ({first_line(error)}); export or download it again"
        ) from None
    if subject.chat_template not in (None, "none"):
        model.tokenizer.chat_template = Path(subject.chat_template).read_text(encoding="utf-8")
    return model
