"""Reads `config.json` into an `Architecture`: every field is used, known to be harmless, or refused."""

import json
from pathlib import Path

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.families import FAMILIES, NOT_BUILT
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields
from dpop_base.dtypes import OUR_NAMES
from dpop_base.errors import UserError, first_line

MOST_ELEMENTS = 10**14  # parameters


def read_architecture(folder: Path) -> Architecture:
    """
    The architecture of a Hugging Face folder, or of a Megatron checkpoint folder that keeps the Hugging Face
    `config.json` in `huggingface/`. Raises UserError for a missing or broken config, an unsupported family,
    or a field that would change the result and is not supported.
    """
    return architecture_of(read_fields(folder))


def architecture_of(fields: Fields) -> Architecture:
    """Does what `read_architecture` does, from fields that were read already."""
    family = _family(fields)
    try:
        architecture = family.read(fields)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # A list where a word belongs, say: every field that a family reads may hold anything.
        raise fields.error(
            f"a field is of another kind than a {family.model_type} model's ({first_line(error)})", "download it again"
        ) from None
    heads, groups = architecture.num_attention_heads, architecture.num_key_value_heads
    _check_size(fields, architecture)
    if heads % groups:
        raise fields.error(f"{heads} heads do not divide into {groups} key/value heads", "one must divide the other")
    return architecture


def _check_size(fields: Fields, a: Architecture) -> None:
    """Refuses sizes of which merely listing the parts that a conversion writes would take for ever."""
    attention = a.hidden_size * (a.num_attention_heads + a.num_key_value_heads) * a.head_dim
    feed_forward = a.ffn_hidden_size if a.experts is None else a.experts.count * a.experts.ffn_hidden_size
    elements = a.num_layers * (attention + a.hidden_size * feed_forward) + a.vocab_size * a.hidden_size
    if elements > MOST_ELEMENTS:
        raise fields.error(f"its sizes make {elements:.1e} parameters", "no model has so many; check the sizes")


def read_fields(folder: Path) -> Fields:
    """The raw fields of a folder's `config.json`. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a Hugging Face or a Megatron checkpoint folder")
    path = folder / "huggingface" / "config.json"
    if not path.is_file():
        path = folder / "config.json"
    if not path.is_file():  # a pipe, too: it would be waited for
        raise UserError(f"{folder}: has no config.json; name a Hugging Face or a Megatron checkpoint folder")
    return read_config_file(path)


def read_config_file(path: Path) -> Fields:
    """The raw fields of a `config.json` of any name. Raises UserError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, not a JSON object; download it again")
    return Fields(path, values)


def dtype_of(fields: Fields) -> str:
    """The dtype that a `config.json` announces ("fp32", "bf16", "fp16"), fp32 where it names none. Raises UserError."""
    name = fields.get("dtype") or fields.get("torch_dtype")
    if name is None and fields.values.get("model_type") == "qwen":  # Qwen1 says it with flags
        name = "bfloat16" if fields.get("bf16") else "float16" if fields.get("fp16") else None
    if name is None:
        return "fp32"
    if not isinstance(name, str) or name not in OUR_NAMES:
        raise fields.error(f"dtype is {name!r}", f"only {', '.join(OUR_NAMES)} are supported")
    return OUR_NAMES[name]


def _family(fields: Fields) -> Family:
    model_type = fields.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        why = f" ({NOT_BUILT[model_type]})" if isinstance(model_type, str) and model_type in NOT_BUILT else ""
        raise fields.error(
            f"model_type {model_type!r} is not supported{why}", f"the families are {', '.join(sorted(FAMILIES))}"
        )
    names = fields.get("architectures")
    if names is not None and names not in [[name] for name in family.model_classes]:
        raise fields.error(f"architectures is {names!r}", f"only ['{family.model_classes[0]}'] is supported")
    return family
