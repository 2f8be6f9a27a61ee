"""Where a Megatron checkpoint keeps its own arguments, and the check that config.json says the same."""

from pathlib import Path
from typing import Any

from checkpoint_convert.tensors.common_state import read_common_state
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.capacity import WHY, limit_asked
from dpop_base.architectures.own_arguments import disagreements, padding_is_known
from dpop_base.errors import UserError

RUN_CONFIG = "run_config.yaml"  # Megatron-Bridge, in each iteration's folder
NEMO_MODEL = Path("context") / "model.yaml"  # NeMo 2, beside weights/


def read_arguments(source: TorchDistSource) -> dict[str, dict[str, Any]]:
    """The arguments that a checkpoint holds, by where they were found. Raises UserError for a damaged file."""
    found: dict[str, dict[str, Any]] = {}
    for path, key in ((source.folder / RUN_CONFIG, "model"), (source.folder.parent / NEMO_MODEL, "config")):
        if path.is_file():
            from checkpoint_convert.plain_yaml import read_section  # few checkpoints have one

            found[str(path)] = read_section(path, key)
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
        if limit := limit_asked(values):
            raise UserError(
                f"{source.folder}: the checkpoint's own arguments have {limit} ({WHY}; {where}); "
                "only models trained without it are supported"
            )
        if found := disagreements(values, a):
            raise UserError(
                f"{source.folder}: the checkpoint's own arguments disagree with config.json: {'; '.join(found)} "
                f"({where}); take the config.json of this very model"
            )
    return any(padding_is_known(values, a) for values in arguments.values())
