"""`megatron-dpop plan --device cpu`: what a config costs on this machine, at a rate that is measured now."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from dpop_base.errors import UserError
from megatron_dpop.commands.plan_inputs import PlannedRun
from megatron_dpop.commands.plan_run_text import show_run
from megatron_dpop.commands.plan_text import line, method
from megatron_dpop.plan.activations import TORCH
from megatron_dpop.plan.choice import LayoutChoice, check_choice
from megatron_dpop.plan.fits import describe
from megatron_dpop.plan.flops import example_flops, example_training_flops
from megatron_dpop.plan.from_config import choice_of
from megatron_dpop.plan.hardware import GIB
from megatron_dpop.plan.memory import device_memory
from megatron_dpop.plan.parameters import model_parameters
from megatron_dpop.plan.whole_run import RunTime, run_time
from megatron_dpop.training.measured_rate import MeasuredRate, measure_rate


@dataclass(frozen=True)
class PlannedHere:
    """A stage on this machine."""

    stage: PlannedRun
    choice: LayoutChoice
    memory_bytes: float  # tensors of all ranks
    rate: MeasuredRate
    step_seconds: float
    time: RunTime | None


def plan_here(stage: PlannedRun) -> PlannedHere:
    """Measures. Raises UserError where the tensors of a run are more than this machine's memory."""
    config, architecture, workload = stage.config, stage.architecture, stage.workload
    choice = choice_of(config, data=config.parallel.fewest_ranks // choice_of(config).devices)
    check_choice(architecture, choice, capacity_tokens=workload.capacity_tokens)
    memory = device_memory(architecture, workload, choice, TORCH, None).total * choice.devices
    if memory > machine_bytes():
        raise UserError(
            f"parallel: {describe(choice)} needs {memory / GIB:.1f} GiB on this machine, which has "
            f"{machine_bytes() / GIB:.1f}; take a smaller model, LoRA or shorter rows (data.row_tokens)"
        )
    rate = measure_rate(config, stage.shape, stage.size)
    training = example_training_flops(architecture, choice.lora, workload.packed)
    step = training * workload.examples / rate.flops_per_second + rate.optimizer_seconds
    time = run_time(
        config,
        devices=1,
        step_seconds=step,
        forward_share=example_flops(architecture, workload.packed) / training,
        has_reference=stage.has_reference,
        counted=stage.counted,
    )
    return PlannedHere(stage, choice, memory, rate, step, time)


def machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def show_here(planned: PlannedHere, price: float | None) -> None:
    stage, choice, rate = planned.stage, planned.choice, planned.rate
    name = f"{stage.name} ({stage.kind}): " if stage.name else ""
    parameters = model_parameters(stage.architecture)
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    print(f"{name}{size} parameters on this machine, {os.cpu_count()} cores: {describe(choice)}; {method(choice)}")
    print(
        f"{stage.workload.examples} pairs a step, {stage.lengths}; {stage.workload.packed.tokens:.0f} tokens a pair "
        f"({stage.workload.unshared.tokens:.0f} without sharing)"
    )
    part = "" if rate.layers == stage.architecture.num_layers else f"the first {rate.layers} layers, "
    print(
        f"measured now, {part}random weights, {rate.passes} passes over {rate.tokens} tokens in {rate.seconds:.1f} s: "
        f"{rate.flops_per_second / 1e12:.3f} TFLOP/s"
    )
    print("\nmemory of all ranks, GiB")
    line("tensors", planned.memory_bytes / GIB, f"of {machine_bytes() / GIB:.1f}; each process takes about 1 more")
    print("\nseconds of a step")
    line("passes", planned.step_seconds - rate.optimizer_seconds)
    line("optimizer", rate.optimizer_seconds)
    line("step", planned.step_seconds, f"{stage.workload.examples / planned.step_seconds:.2f} pairs/s")
    show_run(planned.time, price=price, unit="machine")


def here_json(planned: PlannedHere, price: float | None) -> dict[str, Any]:
    named = {"stage": planned.stage.name, "kind": planned.stage.kind} if planned.stage.name else {}
    return {
        **named,
        "parameters": model_parameters(planned.stage.architecture),
        "layout": asdict(planned.choice),
        "lengths": planned.stage.lengths,
        "measured": asdict(planned.rate),
        "memory_bytes": planned.memory_bytes,
        "step_seconds": planned.step_seconds,
        "run": None if planned.time is None else planned.time.as_json(price),
    }
