"""Seconds of a step: the pipeline's bubble, what is hidden, and rates that no device exceeds."""

from dataclasses import replace

import pytest

from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.flops import example_training_flops
from megatron_dpop.plan.hardware import ASSUMPTIONS, DEVICES
from megatron_dpop.plan.plan import Setting, make_plan
from megatron_dpop.plan.step_time import StepTime
from tests.megatron_dpop.plan.measured import Pairs
from tests.megatron_dpop.plan.shapes import QWEN_72B

PAIRS = Pairs(row_tokens=4096, rows=1, prompt_tokens=90, completion_tokens=190, common_tokens=95)
SETTING = Setting(QWEN_72B, PAIRS.workload(PAIRS.config(pairs=512)), DEVICES["h100"])
BASE = LayoutChoice(tensor=8, pipeline=4, data=2)


def _time(choice: LayoutChoice, setting: Setting = SETTING) -> StepTime:
    return make_plan(setting, choice).time


def test_parts_add_up() -> None:
    time = _time(BASE)
    parts = (time.compute, time.tensor, time.context, time.pipeline, time.bubble, time.data, time.optimizer)
    assert sum(parts) == pytest.approx(time.step)
    assert time.examples_per_second == pytest.approx(512 / time.step)


def test_bubble_is_that_of_1f1b_and_interleaving_divides_it() -> None:
    """Narayanan et al. 2021: (p - 1) / m of the computation, and 1 / v of that; the last stage's output layer apart."""
    rows = SETTING.workload.rows(BASE)
    time = _time(BASE)
    work = time.compute + time.tensor + time.pipeline
    assert time.bubble == pytest.approx((BASE.pipeline - 1) / rows * work, rel=0.15)
    interleaved = _time(replace(BASE, virtual_pipeline=5))
    assert interleaved.bubble == pytest.approx(time.bubble / 5, rel=0.1)
    assert _time(replace(BASE, pipeline=1)).bubble == 0


def test_utilisation_counts_needed_work_over_the_peak() -> None:
    time = _time(BASE)
    needed = 512 * example_training_flops(QWEN_72B, None, SETTING.workload.packed)
    assert time.model_flops_utilisation == pytest.approx(needed / (time.step * 64 * 989e12))
    assert time.model_flops_utilisation < ASSUMPTIONS.linear


def test_recomputation_costs_time() -> None:
    none, selective, full = (_time(replace(BASE, recompute=how)).compute for how in ("none", "selective", "full"))
    assert none < selective < full
    assert full == pytest.approx(none * 4 / 3, rel=0.05)


def test_overlap_hides_data_parallel_transfers() -> None:
    hidden, shown = (_time(replace(BASE, overlap=overlap)).data for overlap in (True, False))
    assert hidden < shown / 2


def test_overlap_hides_tensor_parallel_transfers_but_for_their_first_pieces() -> None:
    plain, overlapped = _time(BASE), _time(replace(BASE, overlap_tensor=True))
    assert overlapped.tensor == pytest.approx(plain.tensor / BASE.tensor, rel=0.05)  # rows are whole, a little longer
    # Where products are much faster than the wires, what they cannot hide is left.
    quick = replace(SETTING, hardware=replace(SETTING.hardware, bf16_flops=1e20))
    shown, left = (_time(replace(BASE, overlap_tensor=overlap), quick).tensor for overlap in (False, True))
    assert left == pytest.approx(shown, rel=0.05)


def test_what_each_choice_is_for() -> None:
    time = _time(BASE)
    assert _time(replace(BASE, fp8=True)).compute < time.compute
    assert _time(replace(BASE, lora=LoraConfig(rank=16))).compute < 0.8 * time.compute
    offloaded = replace(BASE, offload_optimizer=True)
    assert _time(offloaded).optimizer > time.optimizer
    assert _time(BASE, replace(SETTING, hardware=DEVICES["a100"])).step > 2.5 * time.step
