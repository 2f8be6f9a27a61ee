"""What an export needs of a Megatron checkpoint beside its weights: config.json and the tokenizer, or their making."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.assets import announcing, copy_assets, copy_files
from checkpoint_convert.locate import assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.saved_arguments import read_arguments
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.families import FAMILIES
from dpop_base.architectures.fields import Fields
from dpop_base.architectures.own_arguments import config_from
from dpop_base.architectures.read import architecture_of, read_architecture
from dpop_base.errors import UserError
from dpop_base.files import write_json

# Where Megatron-Bridge and NeMo 2 keep the tokenizer, from the folder that holds the tensors.
TOKENIZERS = (Path("tokenizer"), Path("..") / "context" / "nemo_tokenizer")

TOLD_BY_ARGUMENTS = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class ModelDescription:
    """`config` was made of arguments, and `folder` then holds a tokenizer if anything; else `folder` holds both."""

    architecture: Architecture
    folder: Path | None
    config: dict[str, Any] | None = None

    def files(self) -> list[Path]:
        """Those that the result depends on, beside the tensors'."""
        return [self.folder / "config.json"] if self.folder is not None and self.config is None else []

    def write(self, target: Path, dtype: str) -> None:
        if self.config is None:
            assert self.folder is not None
            copy_assets(self.folder, target, dtype)
            return
        if self.folder is not None:
            copy_files(self.folder, target)
        write_json(target / "config.json", announcing(self.config, dtype))


def describe_model(source: Path, *, config: Path | None, from_args: str | None) -> ModelDescription:
    """Describes a Megatron checkpoint as `megatron_to_hf` says. Raises UserError."""
    if from_args is not None:
        if config is not None:
            raise UserError("--config and --from-args: both give the model's config.json; leave one of them out")
        return _from_arguments(iteration_folder(source), from_args)
    if config is not None and checkpoint_kind(config) != "huggingface":
        raise UserError(f"{config}: is a Megatron checkpoint; --config wants a folder with config.json and a tokenizer")
    folder = assets_folder(source) if config is None else config
    return ModelDescription(read_architecture(folder), folder)


def _from_arguments(folder: Path, name: str) -> ModelDescription:
    family = FAMILIES.get(name)
    if family is None:
        raise UserError(f"--from-args: {name} is no family; the families are {', '.join(TOLD_BY_ARGUMENTS)}")
    if name not in TOLD_BY_ARGUMENTS:
        raise UserError(
            f"--from-args: Megatron's arguments do not tell all of a {name} model; "
            f"give a folder with its config.json with --config (they do of {', '.join(TOLD_BY_ARGUMENTS)})"
        )
    source = TorchDistSource(folder)
    try:
        found = read_arguments(source)
    finally:
        source.close()
    for where, arguments in found.items():
        if "num_layers" in arguments:
            try:
                config = config_from(arguments, family.model_type, family.model_classes[0])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{where}: lack {error}; give a folder with the config.json with --config") from None
            architecture = architecture_of(Fields(folder / "config.json of --from-args", config))
            tokenizer = next((folder / path for path in TOKENIZERS if (folder / path).is_dir()), None)
            return ModelDescription(architecture, tokenizer, config)
    raise UserError(f"{folder}: holds no arguments of its model; give a folder with its config.json with --config")
