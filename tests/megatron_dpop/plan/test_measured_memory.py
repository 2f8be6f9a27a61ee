"""The plan's memory against what training really allocates."""

import multiprocessing
from dataclasses import replace

import pytest

from dpop_base.architectures import Architecture
from megatron_dpop.config import Config
from megatron_dpop.plan.activations import TORCH, TRANSFORMER_ENGINE
from megatron_dpop.plan.from_config import choice_of
from megatron_dpop.plan.memory import Memory, device_memory, stage_memory
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.plan.measured import Pairs, training_peak_bytes
from tests.megatron_dpop.plan.shapes import MIXTURE, QWEN2_72B, QWEN_72B, SHARED_MIXTURE, SMALL

torch = pytest.importorskip("torch")

TOLERANCE = 0.10
ROWS = Pairs(row_tokens=1024, rows=2)
MORE_ROWS = replace(ROWS, rows=4)
FP32 = {"params": "fp32"}

CASES: dict[str, tuple[dict, Pairs]] = {
    "bf16": ({}, ROWS),
    "fp32": ({"precision": FP32}, ROWS),
    "full recomputation": ({"train": {"recompute": "full"}}, ROWS),
    "selective recomputation": ({"train": {"recompute": "selective"}}, ROWS),
    "prefixes not shared": ({}, replace(ROWS, share_prefix=False)),
    "tensor": ({"parallel": {"tensor": 2}}, ROWS),
    "tensor without sequence": ({"parallel": {"tensor": 2, "sequence": False}}, ROWS),
    "pipeline": ({"parallel": {"pipeline": 2}}, MORE_ROWS),
    "pipeline, full recomputation": ({"parallel": {"pipeline": 2}, "train": {"recompute": "full"}}, MORE_ROWS),
    "interleaved pipeline": ({"parallel": {"pipeline": 2, "virtual_pipeline": 2}}, MORE_ROWS),
    "uneven pipeline": (
        {"parallel": {"pipeline": 2, "first_stage_layers": 3, "last_stage_layers": 1}},
        MORE_ROWS,
    ),
    "context": ({"parallel": {"context": 2}}, ROWS),
    "context, fp32": ({"parallel": {"context": 2}, "precision": FP32}, ROWS),
    "lora": ({"lora": {"rank": 16}}, ROWS),
    "lora, tensor": ({"lora": {"rank": 16}, "parallel": {"tensor": 2}}, ROWS),
    "data": ({}, ROWS),
    "data, optimizer not distributed": ({"optimizer": {"distributed": False}}, ROWS),
}
OF_EXPERTS: dict[str, tuple[int, dict]] = {
    "bf16": (1, {}),
    "fp32": (1, {"precision": FP32}),
    "full recomputation": (1, {"train": {"recompute": "full"}}),
    "tensor and expert": (1, {"parallel": {"tensor": 2, "expert": 2}}),
    "expert": (2, {"parallel": {"expert": 2}}),
    "expert_tensor": (2, {"parallel": {"expert_tensor": 2}}),
}
QUICK = ("bf16", "tensor")


def _config(name: str) -> tuple[Config, Pairs, int]:
    """(config, pairs, data-parallel size) of a case."""
    sections, pairs = CASES[name]
    data = 2 if name.startswith("data") else 1
    return pairs.step_config(data=data, **sections), pairs, data


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_training_allocates_what_the_plan_says(name: str) -> None:
    config, pairs, data = _config(name)
    choice = choice_of(config, data=data)
    measured = run_ranks(training_peak_bytes, choice.devices, SMALL, config, pairs)
    for rank, peak in enumerate(measured):
        stage = rank * choice.pipeline // choice.devices
        planned = stage_memory(SMALL, pairs.workload(config), choice, TORCH, None, stage)
        assert planned.total == pytest.approx(peak, rel=TOLERANCE), (rank, planned)
        # What passes through the model is held to nearly as much, or weights would hide it.
        held = planned.weights + planned.gradients + planned.optimizer
        assert planned.total - held == pytest.approx(peak - held, rel=1.5 * TOLERANCE), (rank, planned)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [MIXTURE, SHARED_MIXTURE], ids=["experts", "shared expert, dense between"])
@pytest.mark.parametrize("name", in_ci("tensor and expert", "expert_tensor", of=OF_EXPERTS))
def test_training_a_mixture_allocates_what_the_plan_says(name: str, architecture: Architecture) -> None:
    data, sections = OF_EXPERTS[name]
    config = ROWS.step_config(data=data, **sections)
    choice = choice_of(config, data=data)
    planned = stage_memory(architecture, ROWS.workload(config), choice, TORCH, None, 0)
    held = planned.weights + planned.gradients + planned.optimizer
    for peak in run_ranks(training_peak_bytes, choice.devices, architecture, config, ROWS):
        assert planned.total == pytest.approx(peak, rel=TOLERANCE / 2), planned
        assert planned.total - held == pytest.approx(peak - held, rel=TOLERANCE), planned


def test_parts_that_are_known_exactly() -> None:
    """Megatron-Core's table: 6 + 12 / d bytes for a parameter with bf16 weights and fp32 gradients."""
    config, pairs, _ = _config("bf16")
    alone, eight = (_memory(config, pairs, data) for data in (1, 8))
    parameters = alone.weights / 2
    assert alone.gradients == 4 * parameters
    assert alone.optimizer == 12 * parameters
    assert eight.optimizer == 12 * parameters / 8
    assert (eight.weights, eight.gradients) == (alone.weights, alone.gradients)


def _memory(config: Config, pairs: Pairs, data: int) -> Memory:
    return device_memory(SMALL, pairs.workload(config), choice_of(config, data=data), TORCH, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("architecture", [QWEN_72B, QWEN2_72B], ids=["qwen-72b", "qwen2-72b"])
def test_gpu_allocates_what_the_plan_says(architecture, recompute: str) -> None:
    """Two layers of a 72B with a fifth of its vocabulary: about 41 GB with the optimizer's state."""
    slice_of_72b = replace(architecture, num_layers=2, vocab_size=32000)
    pairs = Pairs(row_tokens=8192, rows=2)
    config = pairs.step_config(train={"recompute": recompute})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(training_peak_bytes, (slice_of_72b, config, pairs))
    planned = device_memory(slice_of_72b, pairs.workload(config), choice_of(config), TRANSFORMER_ENGINE, None)
    assert planned.total == pytest.approx(peak, rel=TOLERANCE), planned
