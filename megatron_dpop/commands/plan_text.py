"""Plans as text."""

from collections.abc import Sequence

from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.fits import describe
from megatron_dpop.plan.hardware import GIB
from megatron_dpop.plan.parameters import model_parameters, token_parameters
from megatron_dpop.plan.plan import Plan, Setting, pair_flops
from megatron_dpop.plan.traffic import wire_bandwidths

SHOWN = 5  # layouts of each method that a search shows


def show_plan(setting: Setting, plan: Plan, source: str) -> None:
    choice, hardware = plan.choice, setting.hardware
    parameters = f"{model_parameters(setting.architecture) / 1e9:.1f}B parameters"
    if setting.architecture.experts is not None:
        parameters += f", of which a token passes {token_parameters(setting.architecture) / 1e9:.2f}B,"
    print(f"{parameters} on {choice.devices} {hardware.name}: {describe(choice)}; {method(choice)}")
    _show_workload(setting, choice, source)
    _show_memory(setting, plan)
    _show_work(setting, plan)
    _show_traffic(setting, plan)
    _show_time(plan)


def method(choice: LayoutChoice) -> str:
    trained = f"LoRA of rank {choice.lora.rank}" if choice.lora else "full-parameter"
    return f"{trained}, {choice.params}" + (" with FP8" if choice.fp8 else "")


def _show_workload(setting: Setting, choice: LayoutChoice, source: str) -> None:
    workload = setting.workload
    print(
        f"{workload.examples} pairs a step, {source}; {workload.packed.tokens:.0f} tokens a pair "
        f"({workload.unshared.tokens:.0f} without sharing), {workload.rows(choice)} rows of "
        f"{workload.row(choice).tokens} tokens for each of {choice.data} replicas"
    )


def _show_memory(setting: Setting, plan: Plan) -> None:
    memory = plan.memory
    print("\nmemory of a device, GiB (the fullest pipeline stage)")
    for name, size in memory.held().items():
        line(name, size / GIB, _of_working_memory(plan) if name == "working memory" else "")
    line("total", memory.total / GIB, f"of {setting.hardware.memory_bytes / GIB:.1f}")
    if memory.host:
        line("host, for each device", memory.host / GIB)


def _of_working_memory(plan: Plan) -> str:
    return (
        f"the larger of log-probability tiles, {plan.memory.logprob_chunk / GIB:.2f}, and one layer's backward pass, "
        f"{plan.memory.backward / GIB:.2f}"
    )


def _show_work(setting: Setting, plan: Plan) -> None:
    flops = pair_flops(setting, plan.choice)
    saved = 1 - flops["training"] / flops["training_without_sharing"]
    print("\nTFLOPs of a pair")
    line(
        "training",
        flops["training"] / 1e12,
        f"{flops['training_without_sharing'] / 1e12:.1f} without sharing: {saved:.0%} saved",
    )
    line("reference, once", flops["reference"] / 1e12)


def _show_traffic(setting: Setting, plan: Plan) -> None:
    traffic, wires = plan.traffic, wire_bandwidths(plan.choice, setting.hardware)
    print("\nGB that a device sends a step")
    for name, sent in (
        ("tensor", traffic.tensor),
        ("context", traffic.context),
        ("expert", traffic.expert),
        ("pipeline", traffic.pipeline),
        ("data", traffic.data),
    ):
        if name == "expert" and not sent:
            continue
        wire = "NVLink" if wires[name] == setting.hardware.node_bandwidth else "network"
        line(name, sent / 1e9, f"{wire}, {wires[name] / 1e9:.0f} GB/s" if sent else "")
    if traffic.host:
        line("host", traffic.host / 1e9, f"PCIe, {setting.hardware.host_bandwidth / 1e9:.0f} GB/s")


def _show_time(plan: Plan) -> None:
    time = plan.time
    print("\nseconds of a step")
    for name, seconds in (
        ("compute", time.compute),
        ("tensor-parallel transfers", time.tensor),
        ("context-parallel transfers", time.context),
        ("transfers to experts", time.expert),
        ("pipeline transfers", time.pipeline),
        ("pipeline bubble", time.bubble),
        ("data-parallel transfers", time.data),
        ("optimizer", time.optimizer),
    ):
        if seconds or name != "transfers to experts":
            line(name, seconds)
    line("step", time.step, f"{time.examples_per_second:.1f} pairs/s, {time.tokens_per_second:.0f} tokens/s, "
          f"MFU {time.model_flops_utilisation:.0%}")  # fmt: skip


def show_fewest(fewest: dict[str, dict[str, Plan | None]]) -> None:
    print("\nfewest devices")
    for name, plans in fewest.items():
        for unit, plan in plans.items():
            label = name if unit == "devices" else f"{name}, {unit}"
            found = "none fits"
            if plan is not None:
                found = f"{plan.choice.devices:>4} {plan.memory.total / GIB:6.1f} GiB  {describe(plan.choice)}"
            print(f"  {label:<50} {found}")


def show_search(setting: Setting, found: Sequence[Sequence[Plan]], devices: int) -> None:
    for plans in found:
        print(f"{method(plans[0].choice)} on {devices} {setting.hardware.name}: {len(plans)} layouts fit")
        print(f"  {'step s':>8} {'pairs/s':>8} {'MFU':>5} {'GiB':>6}  layout")
        for plan in plans[:SHOWN]:
            print(f"  {plan.time.step:8.3f} {_rates(plan)}  {describe(plan.choice)}")


def show_weak_scaling(setting: Setting, plans: Sequence[Plan]) -> None:
    first = plans[0]
    pairs = setting.workload.examples / first.choice.devices
    print(f"{method(first.choice)} on {setting.hardware.name}, {pairs:g} pairs a step for each device")
    print(f"  {'devices':>7} {'pairs/s':>8} {'MFU':>5} {'GiB':>6} {'scaling':>8}  layout")
    for plan in plans:
        per_device = plan.time.examples_per_second / plan.choice.devices
        scaling = per_device * first.choice.devices / first.time.examples_per_second
        print(f"  {plan.choice.devices:>7} {_rates(plan)} {scaling:>8.0%}  {describe(plan.choice)}")


def _rates(plan: Plan) -> str:
    time = plan.time
    return f"{time.examples_per_second:8.1f} {time.model_flops_utilisation:5.0%} {plan.memory.total / GIB:6.1f}"


def line(name: str, value: float, note: str = "") -> None:
    print(f"  {name:<28} {value:10.3f}  {note}".rstrip())
