"""Random LoRA adapters of small models, saved as training saves them, and loaded by PEFT."""

from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoint_convert.assets import copy_assets
from checkpoint_convert.lora import Lora, write_adapter_config
from checkpoint_convert.rules.adapters import LINEARS, adapter_tensors
from checkpoint_convert.rules.families import RULES
from dpop_base.architectures import read_architecture
from dpop_base.checkpoint_names import TRACKER
from dpop_base.files import write_text
from tests.distributed import run_ranks

RANK, ALPHA = 4, 10.0


def save_adapters(
    models: list[Path], dtype: torch.dtype = torch.float32, linears: tuple[str, ...] = LINEARS
) -> list[Path]:
    """Of each Hugging Face folder `MODEL`, `MODEL_lora` with a checkpoint of adapters as large as its weights."""
    targets = [model.with_name(f"{model.name}_lora") for model in models]
    run_ranks(_save, 1, [str(path) for path in models], [str(path) for path in targets], dtype, linears)
    return targets


def _save(models: list[str], targets: list[str], dtype: torch.dtype, linears: tuple[str, ...]) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    for model, target in zip(map(Path, models), map(Path, targets), strict=True):
        a = read_architecture(model)
        generator = torch.Generator().manual_seed(3)
        state = {}
        for name, shape in adapter_tensors(RULES[a.family], a, frozenset(linears), RANK).items():
            if ".layers.0." in name:  # layers are stacked
                key = name.replace(".layers.0.", ".layers.")
                values = 0.4 * torch.randn(a.num_layers, *shape, generator=generator) / shape[1] ** 0.5
                state[key] = ShardedTensor.from_rank_offsets(key, values.to(dtype))
        folder = target / "iter_0000005"
        folder.mkdir(parents=True)
        dist_checkpointing.save({"model": state}, str(folder))
        copy_assets(model, target / "huggingface", "fp32")
        write_adapter_config(target, Lora(RANK, ALPHA, 0.0, frozenset(linears), str(model)), a)
        write_text(target / TRACKER, "5")


def with_peft(model: nn.Module, adapter: Path) -> nn.Module:
    """`model` with a PEFT folder on it, as PEFT itself loads it."""
    from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    if hasattr(model, "prepare_inputs_for_generation"):
        return PeftModel.from_pretrained(model, str(adapter))
    model = inject_adapter_in_model(LoraConfig.from_pretrained(str(adapter)), model)
    loaded = set_peft_model_state_dict(model, load_peft_weights(str(adapter)))
    assert not loaded.unexpected_keys
    assert not [name for name in loaded.missing_keys if "lora_" in name]
    return model


def peft_delta(tensors: dict[str, Tensor], weight: str) -> Tensor | None:
    """fp64 alpha / rank * B A for a Hugging Face weight, or None where it has no adapter."""
    module = "base_model.model." + weight.removesuffix(".weight")
    if f"{module}.lora_A.weight" not in tensors:
        return None
    a, b = (tensors[f"{module}.lora_{part}.weight"].double() for part in "AB")
    return ALPHA / RANK * b @ a
