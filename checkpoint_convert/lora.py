"""
Checkpoints of LoRA training: adapters alone, with PEFT's own `adapter_config.json` beside them that says which base
they belong to and how they are scaled.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from checkpoint_convert.conversion.match import check_all_used
from checkpoint_convert.rules.adapters import ADAPTER, adapter_tensors, peft_modules
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import TensorRecipe
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from checkpoint_convert.tensors.unpadded import Unpadded
from dpop_base.architectures.architecture import Architecture
from dpop_base.errors import UserError
from dpop_base.files import write_json

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    """What adapters need beside their tensors."""

    rank: int
    alpha: float
    dropout: float
    linears: frozenset[str]  # Megatron's names, of those in `rules.adapters.LINEARS`
    base: str  # folder of the frozen model, or its name on the hub

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def write_adapter_config(folder: Path, lora: Lora, a: Architecture) -> None:
    """`adapter_config.json`, as PEFT reads it."""
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": lora.base,
            "r": lora.rank,
            "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": peft_modules(RULES[a.family], a, lora.linears),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "use_dora": False,
            "use_rslora": False,
        },
    )


def holds_adapters(source: TorchDistSource) -> bool:
    return any(ADAPTER.fullmatch(name) for name in source.tensors)


def adapter_config_file(folder: Path) -> Path:
    """Returns the file in a checkpoint folder or in one iteration's. Raises UserError where there is none."""
    for candidate in (folder / ADAPTER_CONFIG, folder.parent / ADAPTER_CONFIG):
        if candidate.is_file():
            return candidate
    raise UserError(f"{folder}: holds LoRA adapters but no {ADAPTER_CONFIG}; copy it from the run's checkpoints")


def read_lora(folder: Path, source: TorchDistSource) -> Lora:
    """Describes the adapters in `source`, an iteration's folder. Raises UserError for a file that does not fit."""
    path = adapter_config_file(folder)
    kinds = (ADAPTER.fullmatch(name) for name in source.tensors)
    linears = frozenset(kind[1] for kind in kinds if kind)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, dropout = int(values["r"]), float(values["lora_alpha"]), float(values["lora_dropout"])
        return Lora(rank, alpha, dropout, linears, str(values["base_model_name_or_path"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy it again from the run's checkpoints") from None


def open_adapters(folder: Path, source: TorchDistSource, a: Architecture, lora: Lora) -> Unpadded:
    """The adapters' tensors at their true sizes. Raises UserError unless they are all there and nothing else is."""
    shapes = adapter_tensors(RULES[a.family], a, lora.linears, lora.rank)
    expected = [TensorRecipe(name, shape, ()) for name, shape in shapes.items()]
    adapters = Unpadded(source, expected)
    check_all_used(folder, adapters.tensors, expected, may_be_left=lambda name: False)
    return adapters
