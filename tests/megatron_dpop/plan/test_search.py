"""The search: only what is possible and fits, the fastest first; and the fewest devices."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.choice import LayoutChoice, check_choice
from megatron_dpop.plan.fits import check_memory
from megatron_dpop.plan.hardware import DEVICES
from megatron_dpop.plan.plan import Setting, fits, make_plan
from megatron_dpop.plan.search import (
    candidates,
    fewest_by_method,
    fewest_devices,
    methods,
    nearest,
    ranked,
    weak_scaling,
)
from tests.megatron_dpop.plan.measured import Pairs
from tests.megatron_dpop.plan.shapes import QWEN2_72B, QWEN_72B, SMALL

PUBLISHED = Path(__file__).parents[2] / "dpop_base" / "published"
PAIRS = Pairs(row_tokens=4096, rows=1, prompt_tokens=90, completion_tokens=190, common_tokens=95)
SETTING = Setting(QWEN_72B, PAIRS.workload(PAIRS.config(pairs=512)), DEVICES["h100"])


def test_candidates_are_possible_and_use_every_device() -> None:
    found = list(candidates(SETTING, LayoutChoice(), 32))
    assert len(found) == len(set(found)) > 100
    for choice in found:
        assert choice.devices == 32
        check_choice(QWEN_72B, choice, capacity_tokens=4096)
    # Eight key/value heads do not divide over sixteen ranks, nor do tensor-parallel groups leave a node.
    assert {choice.tensor for choice in candidates(replace(SETTING, architecture=QWEN2_72B), LayoutChoice(), 32)} == {
        1, 2, 4, 8
    }  # fmt: skip


def test_ranking_is_by_the_steps_time_among_what_fits() -> None:
    plans = ranked(SETTING, LayoutChoice(), 64)
    steps = [plan.time.step for plan in plans]
    assert steps == sorted(steps)
    assert all(fits(SETTING, plan.choice) for plan in plans)
    fastest = min(
        make_plan(SETTING, choice).time.step
        for choice in candidates(SETTING, LayoutChoice(), 64)
        if fits(SETTING, choice)
    )
    assert steps[0] == fastest


def test_methods_are_full_and_lora_in_every_precision_of_the_device() -> None:
    on_h100 = methods(SETTING, LayoutChoice())
    assert [(bool(way.lora), way.fp8) for way in on_h100] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    on_a100 = methods(replace(SETTING, hardware=DEVICES["a100"]), LayoutChoice(lora=LoraConfig(rank=8)))
    assert [(way.lora, way.fp8) for way in on_a100] == [(None, False), (LoraConfig(rank=8), False)]


@pytest.mark.parametrize(
    "method",
    [LayoutChoice(), LayoutChoice(offload_optimizer=True), LayoutChoice(lora=LoraConfig(rank=16))],
    ids=["full", "offload", "lora"],
)
def test_fewest_devices_fit_and_one_fewer_never_does(method: LayoutChoice) -> None:
    plan = fewest_devices(SETTING, method)
    assert plan is not None
    assert fits(SETTING, plan.choice)
    for devices in range(1, plan.choice.devices):
        assert not any(fits(SETTING, choice) for choice in candidates(SETTING, method, devices))


def test_fewest_devices_of_qwen_72b() -> None:
    """The bound below: 18 bytes a parameter of a full-parameter run, 2 of LoRA's, over 79 GiB."""
    full = fewest_devices(SETTING, LayoutChoice())
    lora = fewest_devices(SETTING, LayoutChoice(lora=LoraConfig(rank=16)))
    assert full is not None
    assert lora is not None
    assert 72.3e9 * 18 / SETTING.hardware.memory_bytes < full.choice.devices <= 20
    assert lora.choice.devices == 2


def test_too_large_a_layout_is_refused_with_numbers_and_the_nearest_that_fits() -> None:
    choice = LayoutChoice(tensor=8, pipeline=2)
    with pytest.raises(UserError) as refused:
        check_memory(SETTING, choice)
    message = str(refused.value)
    assert "\n" not in message
    fit = nearest(SETTING, choice)
    assert fit is not None
    for part in ("tensor 8, pipeline 2", "16 H100-80GB", "79.1", "optimizer", f"{fit.choice.devices} H100-80GB"):
        assert part in message
    check_memory(SETTING, fit.choice)


def test_the_nearest_layout_keeps_what_it_can() -> None:
    """Recomputation alone fixes this one: neither devices nor sizes change."""
    choice = LayoutChoice(tensor=4, pipeline=5)
    fit = nearest(SETTING, choice)
    assert fit is not None
    assert fit.choice == replace(choice, recompute="full")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Qwen3-30B-A3B."""
    folder = tmp_path_factory.mktemp("mixture")
    entry = json.loads((PUBLISHED / "experts.json").read_text())["Qwen/Qwen3-30B-A3B"]
    (folder / "config.json").write_text(json.dumps(entry["config"]))
    return replace(SETTING, architecture=read_architecture(folder))


def test_experts_are_laid_over_the_ranks_of_a_stage(mixture: Setting) -> None:
    found = list(candidates(mixture, LayoutChoice(), 16))
    assert {choice.expert for choice in found} == {1, 2, 4, 8, 16}
    assert all((choice.devices // choice.pipeline) % choice.expert == 0 for choice in found)
    fewest = fewest_devices(mixture, LayoutChoice())
    assert fewest is not None
    assert 30.5e9 * 18 / mixture.hardware.memory_bytes < fewest.choice.devices <= 8
    assert fewest.choice.expert > 1


def test_experts_state_is_split_over_the_ranks_that_repeat_them(mixture: Setting) -> None:
    few, many = (make_plan(mixture, LayoutChoice(data=64, expert=expert)).memory for expert in (8, 64))
    experts = 48 * 128 * 3 * 2048 * 768
    assert few.weights - many.weights == 2 * experts * (1 / 8 - 1 / 64)
    assert few.optimizer == many.optimizer  # of every entry there are 64 shares either way


def test_what_a_mixture_cannot_be_trained_with_is_not_recommended(mixture: Setting) -> None:
    assert [(way.lora is not None, way.fp8) for way in methods(mixture, LayoutChoice())] == [
        (False, False),
        (True, False),
    ]
    assert list(fewest_by_method(mixture, LayoutChoice())) == ["full-parameter", "LoRA"]


def test_too_large_a_mixture_is_refused_with_a_layout_of_its_experts(mixture: Setting) -> None:
    with pytest.raises(UserError, match=r"expert 2, data 4 on 4 H100-80GB needs .* fits is .*expert"):
        check_memory(mixture, LayoutChoice(data=4, expert=2))


def test_a_model_that_fits_everywhere_is_never_refused() -> None:
    setting = replace(SETTING, architecture=SMALL)
    check_memory(setting, LayoutChoice())
    assert fewest_devices(setting, LayoutChoice()).choice.devices == 1


def test_weak_scaling_keeps_the_work_of_a_device() -> None:
    plans = [plan for _, plan in weak_scaling(SETTING, LayoutChoice(), [32, 64, 128])]
    rates = [plan.time.examples_per_second / plan.choice.devices for plan in plans]
    assert [plan.choice.devices for plan in plans] == [32, 64, 128]
    assert max(rates) < 1.05 * rates[0]
    assert min(rates) > 0.8 * rates[0]
    with pytest.raises(UserError, match="no layout fits 2 H100-80GB"):
        weak_scaling(SETTING, LayoutChoice(), [2])
