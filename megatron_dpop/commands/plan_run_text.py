"""Whole runs of a plan as text: hours and cost, of one config or of a recipe's stages."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_dpop.commands.plan_inputs import PlannedRun, PlanRequest
from megatron_dpop.commands.plan_text import line, method
from megatron_dpop.plan.fits import describe
from megatron_dpop.plan.hardware import GIB
from megatron_dpop.plan.parameters import model_parameters
from megatron_dpop.plan.plan import Plan, Setting
from megatron_dpop.plan.whole_run import SECONDS_PER_HOUR, RunTime

BF16_BYTES = 2
NO_LENGTH = (
    "train.epochs: their steps are not known where data.train cannot be read; "
    "--train.epochs null --train.steps N says them"
)


@dataclass(frozen=True)
class Planned:
    """A stage with what it comes to; `time` is None where nobody knows its steps."""

    stage: PlannedRun
    setting: Setting
    plan: Plan
    time: RunTime | None


def show_run(time: RunTime | None, *, price: float | None, unit: str) -> None:
    """`unit`: what the price is of."""
    if time is None:
        print(f"\nhours of the run: not known. {NO_LENGTH}")
        return
    print(f"\nhours of the run, {time.steps} steps ({time.examples} pairs)")
    if time.reference:
        line("reference, once", time.reference / SECONDS_PER_HOUR)
    line("training", time.training / SECONDS_PER_HOUR)
    if time.validation:
        line("validation", time.validation / SECONDS_PER_HOUR)
    line(
        "total",
        time.hours,
        f"{time.device_hours:.{1 if time.device_hours >= 10 else 3}f} {unit}-hours{_cost(time, price, unit)}",
    )


def _cost(time: RunTime, price: float | None, unit: str) -> str:
    return "" if price is None else f", {time.cost(price):,.2f} at {price:g} a {unit}-hour"


def show_recipe(path: str, request: PlanRequest, planned: Sequence[Planned], price: float | None) -> None:
    first = planned[0]
    devices, hardware = first.plan.choice.devices, first.setting.hardware.name
    count = f"{len(planned)} {'stages' if request.is_chain else 'runs'}"
    parameters = model_parameters(first.setting.architecture)
    print(f"{path}: {count} of {request.model}, {parameters / 1e9:.1f}B parameters, on {devices} {hardware}")
    for text in dict.fromkeys(f"{describe(each.plan.choice)}; {method(each.plan.choice)}" for each in planned):
        print(text)
    for text in dict.fromkeys(each.stage.lengths for each in planned):
        print(f"lengths {text}")
    name_width = max(len(each.stage.name) for each in planned)
    head = f"{'kind':<10} {'loss':<8} {'steps':>6} {'GiB':>5} {'step s':>7} {'hours':>7} {'GPU-hours':>9}"
    print(f"\n  {'':<{name_width}} {head}")
    size = f"{parameters * BF16_BYTES / 1e9:.1f} GB in bf16"
    print(f"  {'conversion':<{name_width}} {request.model} to Megatron's format, {size}")
    for each in planned:
        stage, memory = each.stage, each.plan.memory.total / GIB
        steps, hours, device_hours = ("?", "?", "?") if each.time is None else _numbers(each.time)
        print(
            f"  {stage.name:<{name_width}} {stage.kind:<10} {stage.config.loss.name:<8} {steps:>6} {memory:5.1f} "
            f"{each.plan.time.step:7.2f} {hours:>7} {device_hours:>9}"
        )
    exported = [each.stage for each in planned if each.stage.config.checkpoint.export_hf]
    for stage in exported:
        print(f"  {'conversion':<{name_width}} of {stage.name} to {stage.config.run.dir}/hf, {size}")
    _show_total(planned, price)


def _numbers(time: RunTime) -> tuple[str, str, str]:
    return str(time.steps), f"{time.hours:.2f}", f"{time.device_hours:.1f}"


def _show_total(planned: Sequence[Planned], price: float | None) -> None:
    times = [each.time for each in planned if each.time is not None]
    if len(times) < len(planned):
        print(f"\nhours in all: not known. {NO_LENGTH}")
        return
    reference = sum(time.reference for time in times) / SECONDS_PER_HOUR
    hours, device_hours = sum(time.hours for time in times), sum(time.device_hours for time in times)
    cost = "" if price is None else f", {device_hours * price:,.2f} at {price:g} a GPU-hour"
    print(f"\n{hours:.2f} hours in all, {reference:.2f} of them for references: {device_hours:.1f} GPU-hours{cost}")
    print("Computed alone is counted, not waiting, reading, converting and saving.")
