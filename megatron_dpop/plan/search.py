"""Layouts of a number of devices, the best first, and the fewest devices on which one fits."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from dpop_base.errors import UserError
from megatron_dpop.config.schema import LINEARS, LoraConfig
from megatron_dpop.plan.choice import LayoutChoice, Recompute, check_choice
from megatron_dpop.plan.plan import Plan, Setting, fits, make_plan

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
LARGEST_CONTEXT = 8
MOST_DEVICES = 4096


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def candidates(
    setting: Setting, method: LayoutChoice, devices: int, *, interleaved: bool = True
) -> Iterator[LayoutChoice]:
    """Every way to lay a model over exactly `devices`; precision, LoRA and the optimizer's place are `method`'s.

    Tensor-parallel groups stay within a node and context-parallel ones have at most eight ranks. Where stages cannot
    be equal, the last, which also has the output layer, is the shortest.
    """
    layers = setting.architecture.num_layers
    for tensor in divisors(setting.hardware.node_devices):
        for context in divisors(LARGEST_CONTEXT):
            if devices % (tensor * context):
                continue
            for pipeline in divisors(devices // (tensor * context)):
                layout = replace(
                    method,
                    tensor=tensor,
                    pipeline=pipeline,
                    context=context,
                    data=devices // (tensor * context * pipeline),
                    virtual_pipeline=None,
                    first_stage_layers=None,
                    last_stage_layers=None
                    if layers % pipeline == 0
                    else layers - (pipeline - 1) * -(-layers // pipeline),
                )
                for cut in _expert_layouts(setting, layout):
                    if not _possible(setting, cut):
                        continue
                    for chunks in _virtual_pipelines(layers, cut) if interleaved else [None]:
                        for recompute in RECOMPUTE:
                            yield replace(cut, virtual_pipeline=chunks, recompute=recompute)


def _expert_layouts(setting: Setting, layout: LayoutChoice) -> list[LayoutChoice]:
    """Whole experts over the ranks of a stage, in every number of groups; matrices of single experts stay whole."""
    experts = setting.architecture.experts
    if experts is None:
        return [layout]
    ranks = layout.devices // layout.pipeline
    sizes = [size for size in divisors(experts.count) if ranks % size == 0]
    return [replace(layout, expert=size, expert_tensor=1) for size in sizes]


def _possible(setting: Setting, layout: LayoutChoice) -> bool:
    if (layout.last_stage_layers or 1) < 1:
        return False
    try:
        check_choice(setting.architecture, layout, capacity_tokens=setting.workload.capacity_tokens)
    except UserError:
        return False
    return True


def _virtual_pipelines(layers: int, layout: LayoutChoice) -> list[int | None]:
    if layout.pipeline == 1 or layout.last_stage_layers is not None:
        return [None]
    return [None, *divisors(layers // layout.pipeline)[1:]]


def ranked(setting: Setting, method: LayoutChoice, devices: int) -> list[Plan]:
    """Plans that fit, the fastest step first: of each layout the one with the best interleaving and recomputation."""
    fitting = (choice for choice in candidates(setting, method, devices) if fits(setting, choice))
    best: dict[tuple[int, ...], Plan] = {}
    for plan in sorted((make_plan(setting, choice) for choice in fitting), key=lambda plan: plan.time.step):
        key = (plan.choice.tensor, plan.choice.pipeline, plan.choice.context, plan.choice.expert)
        best.setdefault(key, plan)
    return list(best.values())


def methods(setting: Setting, given: LayoutChoice) -> list[LayoutChoice]:
    """Full-parameter training and LoRA, in bf16 and, where the device has it, in FP8."""
    has_fp8 = setting.hardware.fp8_flops is not None and given.params == "bf16" and not setting.architecture.experts
    precisions = (False, True) if has_fp8 else (False,)
    adapters = (None, _adapters(setting, given))
    return [replace(given, lora=lora, fp8=fp8) for lora in adapters for fp8 in precisions]


def device_counts(least: int = 1) -> Iterator[int]:
    """Numbers of devices to try, ascending: each up to 64, then whole nodes of eight."""
    yield from range(least, 65)
    yield from range(max(72, -(-least // 8) * 8), MOST_DEVICES + 1, 8)


def fewest_devices(setting: Setting, method: LayoutChoice, *, whole_nodes: bool = False) -> Plan | None:
    """The fastest plan on the fewest devices on which one fits; None where none does."""
    for devices in device_counts():
        if whole_nodes and devices % setting.hardware.node_devices:
            continue
        if best := _best(setting, method, devices, key=lambda plan: plan.time.step):
            return best
    return None


def fewest_by_method(setting: Setting, given: LayoutChoice) -> dict[str, dict[str, Plan | None]]:
    """Returns, by method, the plan on the fewest devices, and that on the fewest whole nodes."""
    full = replace(given, lora=None, offload_optimizer=False)
    ways = {
        "full-parameter": full,
        "full-parameter, optimizer on the CPU": replace(full, offload_optimizer=True),
        "LoRA": replace(full, lora=_adapters(setting, given)),
    }
    if setting.architecture.experts:  # whose optimizer stays on the GPU (`config.expert_layout`)
        del ways["full-parameter, optimizer on the CPU"]
    return {
        name: {
            "devices": fewest_devices(setting, way),
            "whole nodes": fewest_devices(setting, way, whole_nodes=True),
        }
        for name, way in ways.items()
    }


def _adapters(setting: Setting, given: LayoutChoice) -> LoraConfig:
    """The adapters asked for, or those that can be trained by default: of experts none."""
    targets = ("linear_qkv", "linear_proj") if setting.architecture.experts else LINEARS
    return given.lora or LoraConfig(targets=targets)


def nearest(setting: Setting, choice: LayoutChoice) -> Plan | None:
    """The plan that fits and is most like `choice`: on as few more devices as possible, then with fewest changes."""
    for devices in device_counts(choice.devices):
        if best := _best(setting, choice, devices, key=lambda plan: _distance(choice, plan.choice)):
            return best
    return None


def _best(setting: Setting, method: LayoutChoice, devices: int, *, key: Callable[[Plan], float]) -> Plan | None:
    fitting = (c for c in candidates(setting, method, devices, interleaved=False) if fits(setting, c))
    return min((make_plan(setting, choice) for choice in fitting), key=key, default=None)


def _distance(one: LayoutChoice, other: LayoutChoice) -> float:
    """Counts doublings of a parallel size and steps of recomputation."""
    sizes = [(getattr(one, name), getattr(other, name)) for name in ("tensor", "pipeline", "context", "expert")]
    doublings = sum(abs(math.log2(a / b)) for a, b in sizes)
    return doublings + abs(RECOMPUTE.index(one.recompute) - RECOMPUTE.index(other.recompute)) / 2


def weak_scaling(setting: Setting, method: LayoutChoice, devices: Sequence[int]) -> list[tuple[Setting, Plan]]:
    """The best plan at each number of devices, with a batch that grows in proportion from the first on.

    Raises UserError where no layout fits.
    """
    found = []
    for count in devices:
        examples = round(setting.workload.examples * count / devices[0])
        scaled = replace(setting, workload=replace(setting.workload, examples=examples))
        plans = ranked(scaled, method, count)
        if not plans:
            raise UserError(f"--weak-scaling: no layout fits {count} {setting.hardware.name}; use more")
        found.append((scaled, plans[0]))
    return found
