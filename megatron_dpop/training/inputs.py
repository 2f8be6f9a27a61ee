"""What a run reads, checked before anything is allocated: model, layout, loss, data."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoint_convert.locate import assets_folder
from checkpoint_convert.weights import check_weights
from dpop_base.architectures import Architecture, read_architecture
from dpop_base.errors import UserError, first_line
from megatron_dpop.config import Config
from megatron_dpop.config.expert_layout import check_with_experts
from megatron_dpop.config.layout import ModelLayout, check_layout, check_row_tokens
from megatron_dpop.config.lengths import settle_lengths
from megatron_dpop.config.precision import check_precision
from megatron_dpop.config.schema import BestConfig, DataConfig, SourceConfig
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.data.load import DataSource, load_dataset
from megatron_dpop.data.templates import PromptFormat
from megatron_dpop.data.tokenizer import load_tokenizer
from megatron_dpop.losses.metric_names import validation_names
from megatron_dpop.losses.registry import Loss, build_loss
from megatron_dpop.plan.fits import check_memory
from megatron_dpop.plan.from_config import choice_of, workload_of
from megatron_dpop.plan.hardware import device_like
from megatron_dpop.plan.plan import Setting
from megatron_dpop.plan.workload import Workload
from megatron_dpop.rows.row import ALL_ALIKE, TokenWeights
from megatron_dpop.rows.shapes import example_shapes
from megatron_dpop.runtime.devices import on_gpu


@dataclass(frozen=True)
class Inputs:
    """A run's inputs, read and found good."""

    model: Path  # Hugging Face folder or Megatron checkpoint folder
    architecture: Architecture
    loss: Loss
    train: TokenizedDataset
    validation: TokenizedDataset | None
    reference_model: Path | None
    token_weights: TokenWeights = ALL_ALIKE


def read_inputs(config: Config, *, progress: bool = True, for_gpus: bool | None = None) -> Inputs:
    """Raises UserError on the first thing that would make the run fail or mean nothing. Starts no process group.

    `for_gpus`: whether the ranks will have GPUs; by default they have what this machine has.
    """
    if config.train.epochs is None:
        settle_lengths(config)
    loss = build_loss(config.loss)
    model, architecture = read_model(config.model.path, key="model.path")
    layout = ModelLayout.of(config.parallel)
    check_layout(architecture, layout)
    check_row_tokens(config.data.row_tokens, layout)
    check_with_experts(config, architecture)
    check_precision(config, architecture, layout, gpu=on_gpu() if for_gpus is None else for_gpus)
    _check_positions(config, architecture)
    reference = None
    if config.reference.model is not None:
        reference, reference_architecture = read_model(config.reference.model, key="reference.model")
        if reference_architecture != architecture:
            raise UserError(
                f"reference.model: {config.reference.model} is another architecture than {config.model.path}; "
                "policy and reference must be of one shape"
            )
    tokenizer = tokenizer_folder(config, model)
    train = read_data(config, config.data.train, loss, tokenizer, progress=progress)
    validation = None
    if config.data.validation:
        validation = read_data(config, config.data.validation, loss, tokenizer, progress=progress)
    if validation is None:
        _check_nothing_needs_validation(config)
    elif config.checkpoint.best is not None:
        _check_best(config, config.checkpoint.best, validation_names(loss, validation.source_names))
    weights = _token_weights(config, loss, tokenizer, [train, *([validation] if validation else [])])
    return Inputs(model, architecture, loss, train, validation, reference, weights)


def read_model(name: str, *, key: str) -> tuple[Path, Architecture]:
    """A model's folder and shape. Raises UserError where it is no model, or not a whole one."""
    folder = resolve_model(name, key=key)
    architecture = read_architecture(assets_folder(folder))
    check_weights(folder)
    return folder, architecture


def tokenizer_folder(config: Config, model: Path) -> Path:
    if config.model.tokenizer is None:
        return assets_folder(model)
    return resolve_model(config.model.tokenizer, key="model.tokenizer")


def resolve_model(name: str, *, key: str, weights: bool = True) -> Path:
    """A local folder, or a model on the Hugging Face hub, fetched into the hub's own cache (if so asked no weights)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") != 1:
        what = "is a file" if path.exists() else "is not a folder"
        raise UserError(f"{key}: {name} {what}; give a Hugging Face folder or a Megatron checkpoint folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
        return Path(snapshot_download(name, allow_patterns=[*patterns, "*.safetensors"] if weights else patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{key}: {name} is neither a folder nor a model the hub gives ({first_line(error)})") from None


def token_cache() -> Path:
    """Where tokenised data is kept between runs and shared by ranks."""
    root = os.environ.get("XDG_CACHE_HOME")
    if not root:
        try:
            root = str(Path.home() / ".cache")
        except RuntimeError:
            raise UserError("HOME is not set, so no cache is known; set it, or XDG_CACHE_HOME to a folder") from None
    return Path(root) / "megatron_dpop" / "tokens"


def _check_positions(config: Config, architecture: Architecture) -> None:
    """Positions count from each example's start, so `max_tokens` bounds them whatever the rows' length."""
    known = architecture.max_position_embeddings
    if config.data.max_tokens > known:
        raise UserError(
            f"data.max_tokens: {config.data.max_tokens} is more than the {known} positions that {config.model.path} "
            "knows (its config's maximum, rope scaling included; of dynamic and longrope scaling the original length); "
            f"give at most {known}"
        )


def read_data(
    config: Config, sources: Sequence[SourceConfig], loss: Loss, tokenizer: Path, *, progress: bool
) -> TokenizedDataset:
    dataset = load_dataset(
        [DataSource(**asdict(source)) for source in sources],
        tokenizer,
        max_tokens=config.data.max_tokens,
        chat_template=prompt_format(config.data),
        too_long=config.data.too_long,
        kind=loss.kind,
        bad_rows=config.data.bad_rows,
        bad_rows_limit=config.data.bad_rows_limit,
        cache=token_cache(),
        progress=progress,
    )
    _check_fits(dataset, config)
    return dataset


def prompt_format(data: DataConfig) -> PromptFormat:
    return PromptFormat(
        data.chat_template,
        data.chat_template_kwargs,
        data.template_date,
        prefix=data.prompt_prefix,
        separator=data.answer_separator,
    )


def _check_fits(dataset: TokenizedDataset, config: Config) -> None:
    lengths = dataset.lengths()
    tokens = example_shapes(
        lengths.prompt_tokens,
        lengths.completion_tokens,
        lengths.common_prefix_tokens,
        share_prefix=config.data.share_prefix,
    ).row_tokens
    longest = int(tokens.argmax())
    if tokens[longest] > config.data.row_tokens:
        raise UserError(
            f"data.row_tokens: {config.data.row_tokens} is less than the {tokens[longest]} tokens of an example of "
            f"{dataset.sources[dataset.source_index[longest]].path}, and an example never spans rows; raise it"
        )


def _token_weights(config: Config, loss: Loss, tokenizer: Path, datasets: Sequence[TokenizedDataset]) -> TokenWeights:
    names = config.data.unscored
    if not names:
        return TokenWeights(tail=loss.tail_weight)
    unscored = load_tokenizer(tokenizer, prompt_format(config.data)).token_ids(names, key="data.unscored")
    for source in (source for dataset in datasets for source in dataset.sources):
        example = source.examples.first_of(unscored)
        if example is not None:
            raise UserError(
                f"data.unscored: example {example + 1} of {source.path} has an answer of nothing but such tokens, so "
                "that no token of it would be scored; remove it from the data, or name fewer tokens"
            )
    return TokenWeights(unscored, loss.tail_weight)


def _check_nothing_needs_validation(config: Config) -> None:
    for key, given in (
        ("train.validate_every", config.train.validate_every),
        ("checkpoint.best", config.checkpoint.best),
        ("logging.samples", config.logging.samples),
    ):
        if given:
            raise UserError(f"{key}: there is no validation; set data.validation, or leave it out")


def _check_best(config: Config, best: BestConfig, known: Sequence[str]) -> None:
    """`known`: names of the run's validation metrics."""
    if config.train.validate_every is None:
        raise UserError(
            "checkpoint.best: weights are validated before the first step and after the last alone, which leaves no "
            "choice; set train.validate_every"
        )
    if best.metric not in known:
        near = difflib.get_close_matches(best.metric, known, n=1, cutoff=0.3)
        fix = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}"
        raise UserError(f"checkpoint.best.metric: {best.metric} is no metric of this run's validation; {fix}")


def dataset_workload(config: Config, dataset: TokenizedDataset) -> Workload:
    """A step over this dataset, in means."""
    lengths = dataset.lengths()
    return workload_of(config, lengths.prompt_tokens, lengths.completion_tokens, lengths.common_prefix_tokens)


def check_fits_devices(
    config: Config,
    architecture: Architecture,
    dataset: TokenizedDataset,
    *,
    devices: int,
    device_name: str,
    memory_bytes: int,
) -> None:
    """Raises UserError, with the numbers and the nearest layout that fits, where training would run out of memory.

    `device_name` and `memory_bytes` as CUDA reports them (`torch.cuda.get_device_properties`).
    """
    if devices % config.parallel.fewest_ranks:
        raise UserError(
            f"parallel: the layout needs {config.parallel.fewest_ranks} ranks, which does not divide "
            f"{devices} devices; use a multiple of it"
        )
    setting = Setting(architecture, dataset_workload(config, dataset), device_like(device_name, memory_bytes))
    check_memory(setting, choice_of(config, data=devices // config.parallel.model_parallel))
