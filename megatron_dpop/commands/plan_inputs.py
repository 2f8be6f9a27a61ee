"""What `megatron-dpop plan` reads: a config or the stages of a recipe, the model's shape, the data's lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.locate import assets_folder
from dpop_base.architectures import Architecture
from dpop_base.architectures.fields import Fields
from dpop_base.architectures.read import architecture_of, read_fields
from dpop_base.errors import UserError
from megatron_dpop.config import Config
from megatron_dpop.config.expert_layout import check_with_experts
from megatron_dpop.config.load import config_of, read_tree
from megatron_dpop.config.recipes import check_recipe, expand, is_chain, is_recipe
from megatron_dpop.config.schema import SourceConfig
from megatron_dpop.plan.from_config import SINGLE_COMPLETION, pair_workload
from megatron_dpop.plan.whole_run import Counted
from megatron_dpop.plan.workload import ExampleSize, Workload

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "qwen.tiktoken")
# Medians of MetaMath-like pairs: a question, a worked answer, and the same answer with one number changed.
TYPICAL_PAIR = (90, 190, 95)


@dataclass(frozen=True)
class PlannedRun:
    """One run to plan."""

    name: str  # "" of a config that stands alone
    config: Config
    architecture: Architecture
    workload: Workload
    lengths: str  # where the workload's lengths come from
    counted: Counted
    size: ExampleSize  # of a typical one
    shape: Mapping[str, Any]  # the model's config.json

    @property
    def kind(self) -> str:
        return "SFT" if self.config.loss.name == "sft" else "preference"

    @property
    def has_reference(self) -> bool:
        from megatron_dpop.losses.registry import build_loss

        return build_loss(self.config.loss).needs_reference


@dataclass(frozen=True)
class PlanRequest:
    """What a file asks for: one run, or those of a recipe."""

    stages: list[PlannedRun]
    model: str  # as the file names it
    gpus: int | None = None  # that it is made for, where it says so
    is_recipe: bool = False
    is_chain: bool = False  # each stage begins with the weights of the one before


def read_request(path: Path, overrides: Sequence[str], pair: str | None) -> PlanRequest:
    """Raises UserError where the file, the model's shape or the lengths given cannot be had."""
    tree = read_tree(path)
    if not (is_recipe(tree) and "model" not in tree):
        config = config_of(tree, path, overrides)
        return PlanRequest([_stage("", config, config.model.path, pair)], config.model.path)
    check_recipe(tree, origin=str(path))
    configs = [config_of(config, path, overrides) for config in expand(tree)]
    first = configs[0].model.path  # whose shape all stages of a chain have
    shape = Fields(path, tree["shape"]) if isinstance(tree.get("shape"), Mapping) else None
    stages = [
        _stage(Path(config.run.dir).name, config, first if is_chain(tree) else config.model.path, pair, shape)
        for config in configs
    ]
    return PlanRequest(stages, first, tree.get("gpus"), is_recipe=True, is_chain=is_chain(tree))


def _stage(name: str, config: Config, model: str, pair: str | None, shape: Fields | None = None) -> PlannedRun:
    """`shape`: of the model, where it is not here."""
    from megatron_dpop.training.inputs import resolve_model

    folder = None
    if shape is None or Path(model).expanduser().is_dir():
        folder = assets_folder(resolve_model(model, key="model.path", weights=False))
        shape = read_fields(folder)
    architecture = architecture_of(shape)
    check_with_experts(config, architecture)
    return PlannedRun(name, config, architecture, *_lengths(config, folder, pair), dict(shape.values))


def _lengths(config: Config, model: Path | None, pair: str | None) -> tuple[Workload, str, Counted, ExampleSize]:
    tokenizer = Path(config.model.tokenizer) if config.model.tokenizer else model
    if pair is None and tokenizer is not None and any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        from megatron_dpop.losses.registry import build_loss
        from megatron_dpop.training.alike_pairs import typical_size
        from megatron_dpop.training.inputs import dataset_workload, read_data

        loss = build_loss(config.loss)
        if _are_here(config.data.train):
            dataset = read_data(config, config.data.train, loss, tokenizer, progress=False)
            held_out = None
            if config.data.validation and _are_here(config.data.validation):
                held_out = len(read_data(config, config.data.validation, loss, tokenizer, progress=False))
            lengths = f"measured on the {len(dataset)} examples of data.train"
            counted = Counted(len(dataset), held_out)
            return dataset_workload(config, dataset), lengths, counted, typical_size(dataset.lengths())
    return _given_lengths(config, pair)


def _given_lengths(config: Config, pair: str | None) -> tuple[Workload, str, Counted, ExampleSize]:
    lengths = whole_numbers(pair, key="--pair", least=0) if pair else list(TYPICAL_PAIR)
    if len(lengths) != 3 or min(lengths[:2]) < 1 or lengths[2] > lengths[1]:
        raise UserError(
            f"--pair: {pair} is not PROMPT,COMPLETION,COMMON; give three numbers of tokens, COMMON at most COMPLETION"
        )
    prompt, completion, common = lengths
    workload = pair_workload(config, prompt=prompt, completion=completion, common=common)
    if workload.packed.tokens > config.data.row_tokens:
        raise UserError(
            f"data.row_tokens: {config.data.row_tokens} is less than the {workload.packed.tokens:.0f} tokens of a pair "
            f"of prompt {prompt} and completions {completion}; raise it"
        )
    lengths_of = f"assumed: prompt {prompt}, completions {completion}, of which {common} in common"
    completions = 1 if config.loss.name in SINGLE_COMPLETION else 2
    return workload, lengths_of, Counted(), ExampleSize(prompt, completion, common, completions)


def _are_here(sources: Sequence[SourceConfig]) -> bool:
    from megatron_dpop.data.files.rows import Location, is_here

    return all(is_here(Location(source.path)) for source in sources)


def whole_numbers(text: str, *, key: str, least: int = 1) -> list[int]:
    """Reads an option's list of numbers. Raises UserError."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise UserError(f"{key}: {text} is not a list of whole numbers from {least} up; separate them with commas")
    return numbers
