"""`megatron-dpop plan`."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from megatron_dpop.commands.plan_here import here_json, plan_here, show_here
from megatron_dpop.commands.plan_inputs import PlannedRun, PlanRequest, read_request, whole_numbers
from megatron_dpop.commands.plan_run_text import Planned, show_recipe, show_run
from megatron_dpop.commands.plan_text import show_fewest, show_plan, show_search, show_weak_scaling
from megatron_dpop.config.precision import check_precision
from megatron_dpop.plan.choice import LayoutChoice, check_choice
from megatron_dpop.plan.fits import check_memory
from megatron_dpop.plan.from_config import choice_of
from megatron_dpop.plan.hardware import DEVICES, Hardware
from megatron_dpop.plan.plan import Setting, as_json, make_plan, pair_flops
from megatron_dpop.plan.search import fewest_by_method, methods, ranked, weak_scaling
from megatron_dpop.plan.whole_run import run_time

CPU = "cpu"


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="memory, FLOPs, communication and step time of a layout, before it is built",
        description="What the config's layout costs on given GPUs, from the model's config.json alone. Lengths are "
        "those of data.train where it can be read. A layout that cannot fit is refused, naming the nearest that does. "
        "Any key of the config can be overridden: --section.key VALUE.",
        epilog="example: megatron-dpop plan config.yaml --device h100 --gpus 64 --parallel.tensor 8",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file: a config, or a recipe of several")
    parser.add_argument(
        "--device",
        choices=[*sorted(DEVICES), CPU],
        default="h100",
        help="default h100 (80 GB); cpu is this machine, whose rate is measured",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="default: a recipe's own, or one replica of the model")
    parser.add_argument("--search", action="store_true", help="rank the layouts of these GPUs instead")
    parser.add_argument(
        "--weak-scaling", metavar="N,N,...", help="best layout at each number of GPUs, the batch growing with it"
    )
    parser.add_argument(
        "--pair",
        metavar="PROMPT,COMPLETION,COMMON",
        help="tokens of a typical pair, COMMON of them shared by its completions, in place of data.train's",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of a GPU for an hour: says what the run costs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=_plan, takes_overrides=True)


def _plan(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    request = read_request(arguments.config, arguments.overrides, arguments.pair)
    if arguments.device == CPU:
        _plan_here(request, arguments)
        return 0
    hardware = DEVICES[arguments.device]
    if arguments.weak_scaling or arguments.search:
        if request.is_recipe:
            raise UserError(
                f"{arguments.config}: is a recipe; give the config of one stage to --search, --weak-scaling"
            )
        _compare_layouts(request.stages[0], hardware, arguments)
        return 0
    planned = [_plan_stage(stage, hardware, arguments.gpus or request.gpus) for stage in request.stages]
    if request.is_recipe:
        if arguments.json:
            _print({"stages": [_stage_json(each, arguments.price) for each in planned]})
        else:
            show_recipe(str(arguments.config), request, planned, arguments.price)
    elif arguments.json:
        _print(_one_json(planned[0], arguments.price))
    else:
        found = planned[0]
        show_plan(found.setting, found.plan, found.stage.lengths)
        show_run(found.time, price=arguments.price, unit="GPU")
        show_fewest(fewest_by_method(found.setting, found.plan.choice))
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.gpus is not None and arguments.gpus < 1:
        raise UserError(f"--gpus: {arguments.gpus} is not a number of devices; give 1 or more")
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise UserError(f"--price: {arguments.price:g} is not a price; give what a GPU costs for an hour")
    if arguments.device == CPU and (arguments.search or arguments.weak_scaling or arguments.gpus is not None):
        raise UserError(
            "--device cpu: this machine is measured at the layout of the config; leave out --gpus and searches"
        )
    if arguments.price is not None and (arguments.search or arguments.weak_scaling):
        raise UserError("--price: a search compares steps, not runs; leave it out")


def _plan_stage(stage: PlannedRun, hardware: Hardware, gpus: int | None) -> Planned:
    config, setting = stage.config, Setting(stage.architecture, stage.workload, hardware)
    of_one_replica = config.parallel.fewest_ranks
    devices = of_one_replica if gpus is None else gpus
    if devices % of_one_replica:
        raise UserError(
            f"--gpus: {devices} is not a multiple of {of_one_replica}, the GPUs that one replica of the model takes"
        )
    choice = replace(choice_of(config), data=devices // choice_of(config).devices)
    check_choice(setting.architecture, choice, capacity_tokens=setting.workload.capacity_tokens)
    check_precision(config, setting.architecture, choice, gpu=True)
    check_memory(setting, choice)
    plan = make_plan(setting, choice)
    flops = pair_flops(setting, choice)
    time = run_time(
        config,
        devices=choice.devices,
        step_seconds=plan.time.step,
        forward_share=flops["reference"] / flops["training"],
        has_reference=stage.has_reference,
        counted=stage.counted,
    )
    return Planned(stage, setting, plan, time)


def _compare_layouts(stage: PlannedRun, hardware: Hardware, arguments: argparse.Namespace) -> None:
    setting, choice = Setting(stage.architecture, stage.workload, hardware), choice_of(stage.config)
    if arguments.weak_scaling:
        numbers = whole_numbers(arguments.weak_scaling, key="--weak-scaling")
        _show_weak_scaling(setting, choice, numbers, arguments.json)
    else:
        devices = stage.config.parallel.fewest_ranks if arguments.gpus is None else arguments.gpus
        _show_search(setting, choice, devices, arguments.json)


def _plan_here(request: PlanRequest, arguments: argparse.Namespace) -> None:
    planned = [plan_here(stage) for stage in request.stages]
    if arguments.json:
        found = [here_json(each, arguments.price) for each in planned]
        _print({"stages": found} if request.is_recipe else found[0])
        return
    for each in planned:
        show_here(each, arguments.price)


def _one_json(planned: Planned, price: float | None) -> dict[str, Any]:
    fewest = fewest_by_method(planned.setting, planned.plan.choice)
    least = {
        way: {unit: as_json(planned.setting, found) if found else None for unit, found in plans.items()}
        for way, plans in fewest.items()
    }
    return {**_stage_json(planned, price), "fewest": least}


def _stage_json(planned: Planned, price: float | None) -> dict[str, Any]:
    stage = planned.stage
    named = {"stage": stage.name, "kind": stage.kind} if stage.name else {}
    run = None if planned.time is None else planned.time.as_json(price)
    return {**named, **as_json(planned.setting, planned.plan), "lengths": stage.lengths, "run": run}


def _show_search(setting: Setting, choice: LayoutChoice, devices: int, as_object: bool) -> None:
    found = [plans for method in methods(setting, choice) if (plans := ranked(setting, method, devices))]
    if not found:
        raise UserError(
            f"--gpus: no layout fits {devices} {setting.hardware.name}, with LoRA or without; use more or larger ones"
        )
    if as_object:
        _print({"plans": [as_json(setting, plan) for plans in found for plan in plans]})
    else:
        show_search(setting, found, devices)


def _show_weak_scaling(setting: Setting, choice: LayoutChoice, devices: list[int], as_object: bool) -> None:
    found = weak_scaling(setting, choice, devices)
    if as_object:
        _print({"plans": [as_json(scaled, plan) for scaled, plan in found]})
    else:
        show_weak_scaling(setting, [plan for _, plan in found])


def _print(tree: dict[str, Any]) -> None:
    print(json.dumps(tree, indent=2))
