"""Refuses what cannot fit, before anything is allocated."""

from dpop_base.errors import UserError
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.hardware import GIB
from megatron_dpop.plan.plan import Setting, memory_of
from megatron_dpop.plan.search import nearest


def check_memory(setting: Setting, choice: LayoutChoice) -> None:
    """Raises UserError, with the numbers and the nearest layout that fits, where a device's memory is too small."""
    memory = memory_of(setting, choice)
    if memory.total <= setting.hardware.memory_bytes:
        return
    largest = sorted(memory.held().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
    fit = nearest(setting, choice)
    fix = (
        f"the nearest layout that fits is {describe(fit.choice)} on {count(setting, fit.choice.devices)} "
        f"({fit.memory.total / GIB:.1f} GiB)"
        if fit is not None
        else "no layout of the search fits; use LoRA, shorter rows (data.row_tokens) or larger devices"
    )
    raise UserError(
        f"parallel: {describe(choice)} on {count(setting, choice.devices)} needs {memory.total / GIB:.1f} GiB of a "
        f"device's {setting.hardware.memory_bytes / GIB:.1f} ({parts}); {fix}"
    )


def count(setting: Setting, devices: int) -> str:
    return f"{devices} {setting.hardware.name}"


def describe(choice: LayoutChoice) -> str:
    """What differs from one device that recomputes nothing, by the config's names."""
    sizes = {
        "tensor": choice.tensor,
        "pipeline": choice.pipeline,
        "virtual_pipeline": choice.virtual_pipeline,
        "first_stage_layers": choice.first_stage_layers,
        "last_stage_layers": choice.last_stage_layers,
        "context": choice.context,
        "expert": choice.expert,
        "expert_tensor": choice.expert_tensor,
        "data": choice.data,
    }
    words = [f"{name} {size}" for name, size in sizes.items() if size not in (None, 1) or name == "tensor"]
    if choice.recompute != "none":
        words.append(f"recompute {choice.recompute}")
    return ", ".join(words)
