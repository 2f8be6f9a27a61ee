"""What is evaluated: a run's exported model, or any Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.locate import checkpoint_kind
from dpop_base.errors import UserError
from dpop_base.run_names import CONFIG, HEARTBEAT, HF, METRICS
from megatron_dpop.config.plain_yaml import read_yaml
from megatron_dpop.data.inspection.report import prompt_hashes

RUN_FILES = (CONFIG, METRICS, HEARTBEAT)


@dataclass(frozen=True)
class Subject:
    """A Hugging Face folder, where its scores go, and what is known of the run that made it."""

    model: Path
    results: Path  # folder
    config: dict[str, Any]  # the run's resolved config; empty where the folder belongs to no run

    @property
    def chat_template(self) -> str | None:
        """The run's `data.chat_template`: None is the tokenizer's, "none" plain text, else a Jinja file."""
        template: str | None = self.config.get("data", {}).get("chat_template")
        return template

    def prompts_of_training(self) -> set[bytes] | None:
        """Hashes of the prompts that the run trained on; None where its data are not known or not there any more."""
        files = [Path(source["path"]) for source in self.config.get("data", {}).get("train", ())]
        if not files or not all(file.is_file() for file in files):
            return None
        return set().union(*(prompt_hashes(file) for file in files))


def find_subject(folder: Path) -> Subject:
    """Raises UserError where the folder is neither, or is a run that has exported nothing yet."""
    if any((folder / name).is_file() for name in RUN_FILES):
        return _run(folder)
    if checkpoint_kind(folder) == "megatron":
        raise UserError(
            f"{folder}: is a Megatron checkpoint; export it first: checkpoint-convert megatron-to-hf {folder} EXPORTED"
        )
    return Subject(folder, Path("eval") / folder.resolve().name, {})


def _run(folder: Path) -> Subject:
    exported = folder / HF
    if not exported.is_dir():
        raise UserError(
            f"{folder}: this run has no hf/, the exported model; make it with: "
            f"checkpoint-convert megatron-to-hf {folder / 'checkpoints'} {exported}"
        )
    checkpoint_kind(exported)
    try:
        config = read_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    return Subject(exported, folder / "eval", config if isinstance(config, dict) else {})
