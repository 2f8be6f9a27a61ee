"""Everything that can be said of one way to train a model on given devices."""

from dataclasses import asdict, dataclass
from typing import Any

from dpop_base.architectures import Architecture
from megatron_dpop.plan.activations import TRANSFORMER_ENGINE, Kernels
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.flops import example_flops, example_training_flops
from megatron_dpop.plan.hardware import ASSUMPTIONS, Assumptions, Hardware
from megatron_dpop.plan.memory import Memory, device_memory
from megatron_dpop.plan.parameters import model_parameters, token_parameters
from megatron_dpop.plan.step_time import StepTime, step_time
from megatron_dpop.plan.traffic import Traffic, step_traffic
from megatron_dpop.plan.workload import Workload


@dataclass(frozen=True)
class Setting:
    """What is given: the model, the data, the devices, and what is assumed of them."""

    architecture: Architecture
    workload: Workload
    hardware: Hardware
    kernels: Kernels = TRANSFORMER_ENGINE
    assumptions: Assumptions = ASSUMPTIONS


@dataclass(frozen=True)
class Plan:
    """What a choice comes to in a setting."""

    choice: LayoutChoice
    memory: Memory
    time: StepTime
    traffic: Traffic


def make_plan(setting: Setting, choice: LayoutChoice) -> Plan:
    """`choice` must be one that `megatron_dpop.plan.choice.check_choice` accepts."""
    return Plan(
        choice=choice,
        memory=memory_of(setting, choice),
        time=step_time(
            setting.architecture, setting.workload, choice, setting.hardware, setting.kernels, setting.assumptions
        ),
        traffic=step_traffic(setting.architecture, setting.workload, choice),
    )


def memory_of(setting: Setting, choice: LayoutChoice) -> Memory:
    return device_memory(setting.architecture, setting.workload, choice, setting.kernels, setting.assumptions)


def fits(setting: Setting, choice: LayoutChoice) -> bool:
    """Asks for memory to spare: what is recommended fits so, what is refused does not fit at all."""
    limit = setting.hardware.memory_bytes * (1 - setting.assumptions.spare)
    return memory_of(setting, choice).total <= limit


def pair_flops(setting: Setting, choice: LayoutChoice) -> dict[str, float]:
    """FLOPs of one example: training with and without sharing, and the reference's one forward pass."""
    architecture, workload = setting.architecture, setting.workload
    return {
        "training": example_training_flops(architecture, choice.lora, workload.packed),
        "training_without_sharing": example_training_flops(architecture, choice.lora, workload.unshared),
        "reference": example_flops(architecture, workload.packed),
    }


def as_json(setting: Setting, plan: Plan) -> dict[str, Any]:
    """Plain numbers, bytes, FLOPs and seconds."""
    return {
        "parameters": model_parameters(setting.architecture),
        "parameters_of_a_token": token_parameters(setting.architecture),
        "hardware": asdict(setting.hardware),
        "assumptions": asdict(setting.assumptions),
        "workload": asdict(setting.workload),
        "devices": plan.choice.devices,
        "layout": asdict(plan.choice),
        "memory_bytes": {**asdict(plan.memory), "total": plan.memory.total},
        "flops_per_example": pair_flops(setting, plan.choice),
        "sent_bytes": asdict(plan.traffic),
        "seconds": asdict(plan.time),
    }
