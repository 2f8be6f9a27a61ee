"""What is asked for: models, their reference, pairs and a layout; checked before a rank is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpop_base.architectures import Architecture
from dpop_base.checkpoint_names import TRACKER
from dpop_base.errors import UserError
from dpop_base.run_names import CHECKPOINTS, CONFIG, HF
from megatron_dpop.config import Config, load_config
from megatron_dpop.config.layout import ModelLayout, check_layout, check_row_tokens
from megatron_dpop.config.load import as_dict, config_from_dict, override
from megatron_dpop.config.precision import check_precision
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.losses.registry import build_loss
from megatron_dpop.report.run import distinct_names
from megatron_dpop.runtime.devices import on_gpu
from megatron_dpop.training.inputs import read_data, read_model, tokenizer_folder

REFERENCE = "reference"
# Of a run's config: what decides which tokens its pairs have, and how its model computes.
KEPT_OF_DATA = (
    *("max_tokens", "row_tokens", "share_prefix", "too_long"),
    *("chat_template", "chat_template_kwargs", "template_date", "prompt_prefix", "answer_separator"),
)
KEPT_OF_TRAINING = ("global_batch_pairs", "deterministic")


@dataclass(frozen=True)
class Model:
    name: str
    folder: Path  # Hugging Face or Megatron
    loss: str | None = None  # that a run trained with


@dataclass(frozen=True)
class Request:
    models: tuple[Model, ...]  # the reference first, where there is one
    has_reference: bool
    config: Config
    architecture: Architecture
    pairs: TokenizedDataset
    tokenizer: Path


@dataclass(frozen=True)
class _Subject:
    """A word of the command line: a trained run, or a model by itself."""

    folder: Path
    weights: Path | str
    config: Config | None = None  # of a run

    @property
    def loss(self) -> str | None:
        return None if self.config is None else self.config.loss.name

    @property
    def reference(self) -> str | None:
        return None if self.config is None else self.config.reference.model or self.config.model.path


def read_request(
    subjects: Sequence[Path],
    pairs: Path,
    *,
    columns: Mapping[str, str] | None = None,
    reference: str | None = None,
    overrides: Sequence[str] = (),
    has_layout: bool = False,
    progress: bool = True,
) -> Request:
    """Raises UserError on what is no model, no file of pairs, or does not fit together.

    columns: role -> column of the pairs' file, where names do not tell; overrides: words of the command line that set
    keys of the config; has_layout: a layout is among them, so that the run's own is left.
    """
    found = [_read_subject(path) for path in subjects]
    named = [(name, str(one.weights), one.loss) for name, one in zip(distinct_names(subjects), found, strict=True)]
    base = _reference(found, reference)
    if base is not None:
        named.insert(0, (REFERENCE, base, None))
    models, architecture = _read_models(named)
    source = {"path": str(pairs), "columns": dict(columns or {})}
    config = _config(found[0], models[-1].folder, source, architecture, overrides, has_layout=has_layout)
    check_config(config, architecture)
    tokenizer = tokenizer_folder(config, Path(config.model.path))
    dataset = read_data(config, config.data.train, build_loss(config.loss), tokenizer, progress=progress)
    return Request(
        models=models,
        has_reference=base is not None,
        config=config,
        architecture=architecture,
        pairs=dataset,
        tokenizer=tokenizer,
    )


def check_config(config: Config, architecture: Architecture) -> None:
    """Raises UserError where the layout or the precision does not fit the model."""
    layout = ModelLayout.of(config.parallel)
    check_layout(architecture, layout)
    check_row_tokens(config.data.row_tokens, layout)
    check_precision(config, architecture, layout, gpu=on_gpu())


def _read_subject(path: Path) -> _Subject:
    if not path.exists() and len(path.parts) != 2:  # a name of two parts may be a model on the hub
        raise UserError(f"{path}: no such folder; give a run's folder, a Hugging Face folder or a Megatron checkpoint")
    if not (path / CONFIG).is_file():
        return _Subject(path, str(path))
    config = load_config(path / CONFIG)
    if config.lora is None and (path / CHECKPOINTS / TRACKER).is_file():
        return _Subject(path, path / CHECKPOINTS, config)
    if (path / HF).is_dir():
        return _Subject(path, path / HF, config)
    raise UserError(f"{path}: the run has no trained weights (checkpoints/ or hf/) yet; wait for its first checkpoint")


def _read_models(named: Sequence[tuple[str, str, str | None]]) -> tuple[tuple[Model, ...], Architecture]:
    """Models of (name, weights, loss), all of one architecture."""
    models: list[Model] = []
    shapes: list[Architecture] = []
    for name, weights, loss in named:
        folder, architecture = read_model(weights, key=name)
        models.append(Model(name, folder, loss))
        shapes.append(architecture)
        if architecture != shapes[0]:
            raise UserError(f"{folder}: is of another shape than {models[0].folder}; analyze one shape at a time")
    return tuple(models), shapes[0]


def _reference(subjects: Sequence[_Subject], given: str | None) -> str | None:
    if given is not None:
        return given
    names = {name: subject for subject in subjects if (name := subject.reference) is not None}
    if len(names) > 1:
        raise UserError(f"the runs have different references ({', '.join(sorted(names))}); name one with --reference")
    return next(iter(names), None)


def _config(
    first: _Subject,
    model: Path,
    source: Mapping[str, Any],
    architecture: Architecture,
    overrides: Sequence[str],
    *,
    has_layout: bool,
) -> Config:
    """The first run's config in what decides tokens and numbers, else the defaults; then the overrides."""
    tree: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"max_tokens": min(2048, architecture.max_position_embeddings)},
        "parallel": {},
        "loss": {"name": "dpo"},
    }
    if first.config is not None:
        run = as_dict(first.config)
        tree["model"]["tokenizer"] = run["model"]["tokenizer"]
        tree["data"] = {key: run["data"][key] for key in KEPT_OF_DATA}
        inherited = {**run["parallel"], "overlap_tensor": False}  # alone and in other rows it has nothing to hide
        tree["parallel"] = {"pad_heads": run["parallel"]["pad_heads"]} if has_layout else inherited
        tree["precision"] = run["precision"]
        tree["train"] = {key: run["train"][key] for key in KEPT_OF_TRAINING}
    tree["data"]["train"] = [source]
    override(tree, overrides)
    return config_from_dict(tree, origin="analyze")
