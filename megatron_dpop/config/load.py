"""Reads a YAML file and `--key.sub value` overrides into a `Config`, or says in one line what to fix."""

import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import RootModel, ValidationError
from pydantic.dataclasses import dataclass

from dpop_base.errors import UserError, first_line, printable
from megatron_dpop.config.faults import first_fault, nearest_key
from megatron_dpop.config.losses import LossConfig
from megatron_dpop.config.plain_yaml import DEEPEST, read_yaml
from megatron_dpop.config.recipes import is_recipe
from megatron_dpop.config.schema import Config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates; `overrides` are the command line's words after the config file.

    Raises UserError that names the file or option, the key, the value and the fix.
    """
    path = Path(path)
    return config_of(read_tree(path), path, overrides)


def config_of(tree: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Validates what was read of `path`, overridden."""
    if "config" in tree and "model" not in tree and is_recipe(tree):
        raise UserError(
            f"{path}: is a recipe of several runs; `megatron-dpop plan` takes it, and "
            "examples/recipes/stages.py writes the config of each"
        )
    overridden = override(tree, overrides)
    return config_from_dict(tree, origin=str(path), overridden=overridden)


def blamed(message: str, words: Sequence[str]) -> str:
    """Returns an error's message, said to be of the command line where its key was set there."""
    key = message.partition(":")[0]
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    return f"command line: {message}" if key in given else message


def override(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Sets, and returns, the keys that words of the command line name: `--section.key value`, `--section.key=value`."""
    pairs = _parse_overrides(words)
    for key, value in pairs:
        _set(tree, key, value)
    return [key for key, _ in pairs]


def config_from_dict(tree: dict[str, Any], *, origin: str, overridden: Collection[str] = ()) -> Config:
    """Validates; a fault of a key that was `overridden` is blamed on the command line, any other on `origin`."""
    try:
        return RootModel[Config].model_validate(tree).root
    except ValidationError as error:
        fault = first_fault(error)
        is_ours = any(f"{fault.key}.".startswith(f"{key}.") for key in overridden)
        raise UserError(f"{'command line' if is_ours else origin}: {fault.text}") from None


@dataclass(frozen=True)
class _LossAlone:
    loss: LossConfig


def read_loss(section: Mapping[str, object]) -> LossConfig:
    """Validates a section `loss` by itself. Raises UserError."""
    try:
        return RootModel[_LossAlone].model_validate({"loss": section}).root.loss
    except ValidationError as error:
        raise UserError(first_fault(error).text) from None


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


def read_tree(path: Path) -> dict[str, Any]:
    """The file's sections, not validated. Raises UserError."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the config's file{_configs_in(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); give an existing YAML file") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: cannot be read as a config: {first_line(error)}; fix the file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections (model, data, ...), not {type(tree).__name__}")
    return tree


def _configs_in(folder: Path) -> str:
    names = sorted(path.name for path in (*folder.glob("*.yaml"), *folder.glob("*.yml")))
    return f", such as {folder / names[0]}" if names else ""


def _parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or "." not in word.split("=")[0]:
            near = nearest_key(word[2:].partition("=")[0]) if word.startswith("--") else None
            fix = (
                f"did you mean --{near}?" if near and "." in near else "override a config key with --section.key value"
            )
            raise UserError(f"{word}: not an option; {fix}")
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
