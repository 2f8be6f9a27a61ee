"""Where a Megatron checkpoint keeps its own arguments, and the check that config.json says the same."""

import re
from pathlib import Path
from typing import Any

import yaml

from checkpoint_convert.architectures.architecture import Architecture
from checkpoint_convert.architectures.own_arguments import disagreements, padding_is_known
from checkpoint_convert.errors import UserError, first_line
from checkpoint_convert.tensors.common_state import read_common_state
from checkpoint_convert.tensors.torch_dist import TorchDistSource

RUN_CONFIG = "run_config.yaml"  # Megatron-Bridge, in each iteration's folder
NEMO_MODEL = Path("context") / "model.yaml"  # NeMo 2, beside weights/


class _PlainLoader(yaml.SafeLoader):
    """YAML in which whatever names a class of Python is the plain list or table that it is written as, or null."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_PlainLoader.add_multi_constructor("", _plain)
# OmegaConf writes 1e-05, which YAML 1.1 takes for a string.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_arguments(source: TorchDistSource) -> dict[str, dict[str, Any]]:
    """The arguments that a checkpoint holds, by where they were found. Raises UserError for a damaged file."""
    found: dict[str, dict[str, Any]] = {}
    for path, key in ((source.folder / RUN_CONFIG, "model"), (source.folder.parent / NEMO_MODEL, "config")):
        if path.is_file():
            found[str(path)] = _section(path, key)
    state = read_common_state(source)
    if isinstance(state.get("args"), dict):
        found[f"args of {source.folder}"] = state["args"]
    elif isinstance(state.get("vocab_size"), int):  # our own training's
        found[f"common state of {source.folder}"] = {"vocab_size": state["vocab_size"]}
    return {where: values for where, values in found.items() if values}


def check_arguments(source: TorchDistSource, a: Architecture) -> bool:
    """
    True where the checkpoint says that vocabulary rows beyond the true ones are padding. Raises UserError where it
    computes otherwise than config.json says.
    """
    arguments = read_arguments(source)
    for where, values in arguments.items():
        if found := disagreements(values, a):
            raise UserError(
                f"{source.folder}: the checkpoint's own arguments disagree with config.json: {'; '.join(found)} "
                f"({where}); take the config.json of this very model"
            )
    return any(padding_is_known(values, a) for values in arguments.values())


def _section(path: Path, key: str) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({first_line(error)}); copy it again") from None
    section = values.get(key) if isinstance(values, dict) else None
    return section if isinstance(section, dict) else {}
