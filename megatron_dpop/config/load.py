"""From a YAML file and `--key.sub value` overrides to a `Config`, or one line that says what to mend."""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import RootModel, ValidationError

from dpop_base.errors import UserError, first_line, printable
from megatron_dpop.config.plain_yaml import DEEPEST, read_yaml
from megatron_dpop.config.schema import Config


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates; `overrides` are the command line's words after the config file.

    Raises UserError that names the file or option, the key, the value and the mend.
    """
    tree = _read(path)
    override(tree, overrides)
    return config_from_dict(tree, origin=str(path))


def override(tree: dict[str, Any], words: Sequence[str]) -> None:
    """Sets the keys that words of the command line name, `--section.key value` or `--section.key=value`."""
    for key, value in _parse_overrides(words):
        _set(tree, key, value)


def config_from_dict(tree: dict[str, Any], *, origin: str) -> Config:
    try:
        return RootModel[Config].model_validate(tree).root
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def as_dict(config: Config) -> dict[str, Any]:
    """Plain lists, dicts and scalars."""
    return typing.cast(dict[str, Any], RootModel[Config](config).model_dump(mode="json", by_alias=True))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); give an existing YAML file") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: cannot be read as a config: {first_line(error)}; fix the file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections (model, data, ...), not {type(tree).__name__}")
    return tree


def _parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or "." not in word.split("=")[0]:
            raise UserError(f"{word}: not an option; override a config key with --section.key value")
        key, given, text = word[2:].partition("=")
        if not given:
            if not rest:
                raise UserError(f"--{key}: needs a value")
            text = rest.pop(0)
        _check_whole(key, text)
        try:
            pairs.append((key, read_yaml(text)))
        except ValueError as error:
            value, reason = printable(text), first_line(error)
            raise UserError(
                f"--{printable(key)}: cannot read the value {value!r}: {reason}; quote it as YAML"
            ) from None
    return pairs


def _check_whole(key: str, text: str) -> None:
    """Raises UserError where YAML would leave out the value's end, as a comment."""
    try:
        last = [token for token in yaml.scan(text) if not isinstance(token, yaml.StreamEndToken)][-1]
    except yaml.YAMLError:
        return  # said better where it is read
    dropped = text[last.end_mark.index :].strip() if not isinstance(last, yaml.StreamStartToken) else text.strip()
    if dropped.startswith("#"):
        quoted = text.replace("'", "''")
        raise UserError(
            f"--{key}: in {text!r} YAML takes {dropped!r} for a comment; quote the value for it: --{key}=\"'{quoted}'\""
        )


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    if len(sections) > DEEPEST:
        raise UserError(f"--{printable(dotted)}: no key lies so deep")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        below = tree[section]
        if not isinstance(below, dict):
            raise UserError(f"--{dotted}: {section} is not a section of keys")
        tree = below
    tree[key] = value


def _explain(error: ValidationError) -> str:
    """The first fault, in one line: key, value, mend."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; remove it")
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "dataclass_type":
        message = "a section of keys is needed here"
    return f"{key}: {printable(repr(first['input']))} is not valid: {message[0].lower() + message[1:]}"


def known_keys() -> list[str]:
    """Every key that a config may hold, dotted (`loss` holds the keys of the loss it names)."""
    keys: list[str] = []
    for section in dataclasses.fields(Config):
        keys.append(section.name)
        for kind in (section.type, *typing.get_args(section.type)):  # `LoraConfig | None` has two
            fields = getattr(kind, "__pydantic_fields__", {})
            keys += [f"{section.name}.{field.alias or name}" for name, field in fields.items()]
    return keys
