"""`megatron-dpop plan`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint_convert.locate import assets_folder
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from megatron_dpop.commands.plan_text import show_plan, show_search, show_weak_scaling
from megatron_dpop.config import Config, load_config
from megatron_dpop.config.expert_layout import check_with_experts
from megatron_dpop.config.precision import check_precision
from megatron_dpop.plan.choice import LayoutChoice, check_choice
from megatron_dpop.plan.fits import check_memory
from megatron_dpop.plan.from_config import choice_of, pair_workload
from megatron_dpop.plan.hardware import DEVICES
from megatron_dpop.plan.plan import Plan, Setting, as_json, make_plan
from megatron_dpop.plan.search import fewest_by_method, methods, ranked, weak_scaling
from megatron_dpop.plan.workload import Workload

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "qwen.tiktoken")
# Medians of MetaMath-like pairs: a question, a worked answer, and the same answer with one number changed.
TYPICAL_PAIR = (90, 190, 95)


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="memory, FLOPs, communication and step time of a layout, before it is built",
        description="What the config's layout costs on given GPUs, from the model's config.json alone. Lengths are "
        "those of data.train where it can be read. A layout that cannot fit is refused, naming the nearest that does. "
        "Any key of the config can be overridden: --section.key VALUE.",
        epilog="example: megatron-dpop plan config.yaml --device h100 --gpus 64 --parallel.tensor 8",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--device", choices=sorted(DEVICES), default="h100", help="default h100 (80 GB)")
    parser.add_argument("--gpus", type=int, metavar="N", help="default: one replica of the model")
    parser.add_argument("--search", action="store_true", help="rank the layouts of these GPUs instead")
    parser.add_argument(
        "--weak-scaling", metavar="N,N,...", help="best layout at each number of GPUs, the batch growing with it"
    )
    parser.add_argument(
        "--pair",
        metavar="PROMPT,COMPLETION,COMMON",
        help="tokens of a typical pair, COMMON of them shared by its completions, in place of data.train's",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=_plan, takes_overrides=True)


def _plan(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    setting, source = _setting(config, arguments)
    choice = choice_of(config)
    of_one_replica = config.parallel.fewest_ranks
    devices = of_one_replica if arguments.gpus is None else arguments.gpus
    if devices < 1:
        raise UserError(f"--gpus: {devices} is not a number of devices; give 1 or more")
    if arguments.weak_scaling:
        _show_weak_scaling(setting, choice, _numbers(arguments.weak_scaling, key="--weak-scaling"), arguments.json)
    elif arguments.search:
        _show_search(setting, choice, devices, arguments.json)
    else:
        if devices % of_one_replica:
            raise UserError(
                f"--gpus: {devices} is not a multiple of {of_one_replica}, the GPUs that one replica of the model takes"
            )
        choice = replace(choice, data=devices // choice.devices)
        check_choice(setting.architecture, choice, capacity_tokens=setting.workload.capacity_tokens)
        check_precision(config, setting.architecture, choice, gpu=True)
        check_memory(setting, choice)
        _show_plan(setting, make_plan(setting, choice), source, arguments.json)
    return 0


def _setting(config: Config, arguments: argparse.Namespace) -> tuple[Setting, str]:
    """What is given, and where the lengths of the data come from."""
    from megatron_dpop.training.inputs import resolve_model

    folder = assets_folder(resolve_model(config.model.path, key="model.path", weights=False))
    architecture = read_architecture(folder)
    check_with_experts(config, architecture)
    workload, source = _workload(config, folder, arguments.pair)
    return Setting(architecture, workload, DEVICES[arguments.device]), source


def _workload(config: Config, model: Path, pair: str | None) -> tuple[Workload, str]:
    from megatron_dpop.data.rows import Location, is_here

    tokenizer = Path(config.model.tokenizer) if config.model.tokenizer else model
    is_readable = all(is_here(Location(source.path)) for source in config.data.train) and any(
        (tokenizer / name).is_file() for name in TOKENIZER_FILES
    )
    if pair is None and is_readable:
        from megatron_dpop.losses.registry import build_loss
        from megatron_dpop.training.inputs import dataset_workload, read_data, tokenizer_folder

        folder = tokenizer_folder(config, model)
        dataset = read_data(config, config.data.train, build_loss(config.loss), folder, progress=False)
        return dataset_workload(config, dataset), f"measured on the {len(dataset)} examples of data.train"
    lengths = _numbers(pair, key="--pair", least=0) if pair else list(TYPICAL_PAIR)
    if len(lengths) != 3 or min(lengths[:2]) < 1 or lengths[2] > lengths[1]:
        raise UserError(
            f"--pair: {pair} is not PROMPT,COMPLETION,COMMON; give three numbers of tokens, COMMON at most COMPLETION"
        )
    prompt, completion, common = lengths
    workload = pair_workload(config, prompt=prompt, completion=completion, common=common)
    if workload.packed.tokens > config.data.row_tokens:
        raise UserError(
            f"data.row_tokens: {config.data.row_tokens} is less than the {workload.packed.tokens:.0f} tokens of a pair "
            f"of prompt {prompt} and completions {completion}; raise it"
        )
    return workload, f"assumed: prompt {prompt}, completions {completion}, of which {common} in common"


def _numbers(text: str, *, key: str, least: int = 1) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise UserError(f"{key}: {text} is not a list of whole numbers from {least} up; separate them with commas")
    return numbers


def _show_plan(setting: Setting, plan: Plan, source: str, as_object: bool) -> None:
    fewest = fewest_by_method(setting, plan.choice)
    if not as_object:
        show_plan(setting, plan, source, fewest)
        return
    least = {
        way: {unit: as_json(setting, found) if found else None for unit, found in plans.items()}
        for way, plans in fewest.items()
    }
    _print({**as_json(setting, plan), "lengths": source, "fewest": least})


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
