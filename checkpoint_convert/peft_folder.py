"""A PEFT folder as input: a LoRA adapter, read with all that decides what it adds to its base, or refused by name."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.lora import ADAPTER_CONFIG
from checkpoint_convert.rules.adapters import PEFT
from checkpoint_convert.tensors.source import TensorSource
from dpop_base.errors import UserError

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What an adapter saves under `<module>.`; PEFT of before 0.5 wrote the adapter's name too.
_PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
# Keys of rank_pattern and alpha_pattern are regular expressions: without repetition none takes long.
_PATTERN = re.compile(r"\^?(?:[\w-]|\.|\\\.|\[\d\])+\$?")
# Fields of adapter_config.json that are read, or that say how an adapter was trained and not what it computes.
# fmt: off
_READ = frozenset((
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora",
))
_OF_TRAINING = frozenset((
    "task_type", "auto_mapping", "revision", "inference_mode", "lora_dropout", "target_modules", "target_parameters",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "megatron_config",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "peft_version",
    "qalora_group_size", "ensure_weight_tying", "init_lora_weights", "unsloth_version",
))
# fmt: on
# Beginnings that change the base's own weights: the adapter then belongs to a base that is not the published one.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_peft_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def base_of(folder: Path, base: Path | None) -> Path:
    """The base model's folder: `base`, or the one that the adapter names. Raises UserError where it is not here."""
    named = base if base is not None else Path(str(_read_config(folder).get("base_model_name_or_path")))
    if not named.is_dir():
        raise UserError(f"{folder}: its base model {named} is not a folder here; download it and name it with --base")
    return named


@dataclass(frozen=True)
class Adapted:
    """One weight's adapter: names in its file, and what B A is multiplied by. `magnitude` is DoRA's, of each row."""

    lora_a: str
    lora_b: str
    scale: float
    magnitude: str | None = None


def match_adapter(folder: Path, adapter: TensorSource, base: TensorSource) -> tuple[dict[str, Adapted], dict[str, str]]:
    """
    The weights of `base` (the family's names) that the adapter of `folder` adds to, and those that it replaces, by
    their names there. Raises UserError for what cannot be honoured.
    """
    config = _read_config(folder)
    _check_config(folder, config)
    return _match(folder, config, adapter, base)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds {type(config).__name__}, not a JSON object; download it again")
    return config


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    path = folder / ADAPTER_CONFIG
    fix = "merge it with PEFT (merge_and_unload) and convert the merged model"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r} is not supported, only 'LORA' is; {fix}")
    begins = config.get("init_lora_weights")
    if begins not in _PLAIN_BEGINNINGS:
        raise UserError(f"{path}: init_lora_weights {begins!r} changes the base's own weights; {fix}")
    unknown = [name for name in sorted(set(config) - _READ - _OF_TRAINING) if config[name]]
    if unknown:
        raise UserError(f"{path}: {', '.join(f'{n} {config[n]!r}' for n in unknown)} is not supported; {fix}")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise UserError(f"{path}: {name} is {config[name]!r}; it must be a table of modules and numbers")
        for key in config.get(name) or {}:
            if not _PATTERN.fullmatch(key):
                raise UserError(f"{path}: the key {key!r} of {name} is not supported, only names are; {fix}")


def _match(
    folder: Path, config: dict[str, Any], adapter: TensorSource, base: TensorSource
) -> tuple[dict[str, Adapted], dict[str, str]]:
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in adapter.tensors:
        found = _PART.fullmatch(name.removeprefix(PEFT))
        if found:
            parts.setdefault(found[1], {})[found[2]] = name
        # modules_to_save, and biases that were trained
        elif (own := name.removeprefix(PEFT).replace(".base_layer.", ".")) in base.tensors:
            replaced[own] = name
        else:
            raise UserError(f"{folder}: holds {name}, which its base has no place for; name the right one with --base")
    for own, name in replaced.items():
        here, there = adapter.tensors[name].shape, base.tensors[own].shape
        if here != there:
            raise UserError(
                f"{folder}: {name} is {list(here)} and the base's {list(there)}; "
                "resize the base's vocabulary as it was for training, and convert with that"
            )
    adapted = {f"{m}.weight": _adapted(folder, config, m, names, adapter, base) for m, names in parts.items()}
    if both := sorted(set(adapted) & set(replaced)):
        raise UserError(f"{folder}: {both[0]} is both adapted and replaced; merge it with PEFT instead")
    return adapted, replaced


def _adapted(
    folder: Path, config: dict[str, Any], module: str, names: dict[str, str], adapter: TensorSource, base: TensorSource
) -> Adapted:
    if not {"lora_A", "lora_B"} <= set(names) or f"{module}.weight" not in base.tensors:
        raise UserError(
            f"{folder}: has {', '.join(sorted(names.values()))} for a module that its base has not or without their "
            "fellows; download it again, or name the right base with --base"
        )
    rank = _of_module(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    weight, lora_a, lora_b = (
        base.tensors[f"{module}.weight"],
        *(adapter.tensors[names[n]] for n in ("lora_A", "lora_B")),
    )
    expected = ((rank, weight.shape[-1]), (weight.shape[0], rank))
    if (lora_a.shape, lora_b.shape) != expected:
        raise UserError(
            f"{folder}: the adapter of {module} is {list(lora_a.shape)} and {list(lora_b.shape)}, and its config and "
            f"base say {list(expected[0])} and {list(expected[1])}; name the right base with --base"
        )
    if bool(config.get("use_dora")) is not ("lora_magnitude_vector" in names):
        raise UserError(f"{folder}: use_dora and the magnitudes of {module} do not fit together; download it again")
    try:
        scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ValueError
    except (TypeError, ValueError, ArithmeticError):
        raise UserError(f"{folder}: r {rank!r} and lora_alpha {alpha!r} must be numbers; download it again") from None
    return Adapted(names["lora_A"], names["lora_B"], scale, names.get("lora_magnitude_vector"))


def _of_module(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name, as a regular expression."""
    return next((v for key, v in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)
