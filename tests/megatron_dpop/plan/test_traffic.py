"""Bytes over each network: against what a training step hands to its collectives, and against known tables."""

from dataclasses import replace

import pytest

from dpop_base.architectures import Architecture
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.from_config import choice_of
from megatron_dpop.plan.hardware import DEVICES
from megatron_dpop.plan.traffic import data_traffic, host_traffic, ring, step_traffic, wire_bandwidths
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.plan.measured import Pairs, training_sent_bytes
from tests.megatron_dpop.plan.shapes import MIXTURE, QWEN_72B, SHARED_MIXTURE, SMALL

ROWS = Pairs(row_tokens=1024, rows=2)
CASES: dict[str, dict] = {
    "tensor": {"parallel": {"tensor": 2}},
    "tensor, full recomputation": {"parallel": {"tensor": 2}, "train": {"recompute": "full"}},
    "tensor without sequence": {"parallel": {"tensor": 2, "sequence": False}},
    "pipeline": {"parallel": {"pipeline": 2}},
    "interleaved pipeline": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "context": {"parallel": {"context": 2}},
    "context, selective recomputation": {"parallel": {"context": 2}, "train": {"recompute": "selective"}},
    "data": {},
    "data, optimizer not distributed": {"optimizer": {"distributed": False}},
}
QUICK = ("tensor", "context")
# Overlapped, as on GPUs: else Megatron-Core gathers all weights once for experts' optimizer and once for the others'.
OVERLAP = {"overlap": True}
OF_EXPERTS: dict[str, tuple[int, dict]] = {
    "expert": (2, {"parallel": {"expert": 2, **OVERLAP}}),
    "expert_tensor": (2, {"parallel": {"expert_tensor": 2, **OVERLAP}}),
    "tensor and expert": (1, {"parallel": {"tensor": 2, "expert": 2, **OVERLAP}}),
    "tensor, full recomputation": (1, {"parallel": {"tensor": 2, **OVERLAP}, "train": {"recompute": "full"}}),
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_step_sends_what_the_plan_says(name: str) -> None:
    data = 2 if name.startswith("data") else 1
    config = ROWS.step_config(data=data, **CASES[name])
    choice = choice_of(config, data=data)
    sent = run_ranks(training_sent_bytes, choice.devices, SMALL, config, ROWS)
    for rank, measured in enumerate(sent):
        stage = rank * choice.pipeline // choice.devices
        planned = step_traffic(SMALL, ROWS.workload(config), choice, stage)
        total = planned.tensor + planned.context + planned.pipeline + planned.data
        # Norms' gradients and scalars are not planned for.
        assert total == pytest.approx(measured, rel=1e-3), (rank, planned)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [MIXTURE, SHARED_MIXTURE], ids=["experts", "shared expert, dense between"])
@pytest.mark.parametrize("name", in_ci("tensor and expert", "expert_tensor", of=OF_EXPERTS))
def test_a_mixtures_step_sends_what_the_plan_says(name: str, architecture: Architecture) -> None:
    data, sections = OF_EXPERTS[name]
    config = ROWS.step_config(data=data, **sections)
    choice = choice_of(config, data=data)
    planned = step_traffic(architecture, ROWS.workload(config), choice)
    total = planned.tensor + planned.data + planned.expert
    for measured in run_ranks(training_sent_bytes, choice.devices, architecture, config, ROWS):
        assert total == pytest.approx(measured, rel=2e-3), planned  # norms' and routers' gradients are not planned for


def test_a_ring_sends_all_but_its_own_share() -> None:
    assert ring(800.0, 1) == 0
    assert ring(800.0, 8) == 700.0


def test_data_parallel_bytes_per_parameter() -> None:
    """fp32 gradients and bf16 weights: 6 bytes a parameter, 5 where weights travel in FP8, 8 without sharding."""
    many = LayoutChoice(data=4096)
    parameters = sum(data_traffic(QWEN_72B, many, 0)) / 6
    assert parameters == pytest.approx(72.3e9, rel=1e-3)
    fp8 = replace(many, fp8=True, fp8_params=True)
    assert sum(data_traffic(QWEN_72B, fp8, 0)) == pytest.approx(5 * parameters, rel=0.02)  # embeddings stay in bf16
    assert data_traffic(QWEN_72B, replace(many, distributed_optimizer=False), 0) == pytest.approx((8 * parameters, 0))
    adapters = sum(data_traffic(QWEN_72B, replace(many, lora=LoraConfig(rank=16)), 0))
    assert adapters < parameters * 6 / 300


def test_host_traffic_is_gradients_down_and_weights_up() -> None:
    choice = LayoutChoice(tensor=8, data=2, offload_optimizer=True)
    assert host_traffic(QWEN_72B, choice, 0) == pytest.approx(6 * 72.3e9 / 16, rel=1e-3)
    assert host_traffic(QWEN_72B, replace(choice, offload_optimizer=False), 0) == 0


def test_groups_that_leave_the_node_take_the_network() -> None:
    device = DEVICES["h100"]
    wires = wire_bandwidths(LayoutChoice(tensor=4, context=2, data=2, pipeline=2), device)
    node, network = device.node_bandwidth, device.network_bandwidth
    assert wires == {"tensor": node, "context": node, "expert": node, "data": network, "pipeline": network}
    two_nodes = wire_bandwidths(LayoutChoice(data=16, expert=16), device)
    assert two_nodes["expert"] == network * 15 / 8, "of fifteen other ranks eight are on the other node"
