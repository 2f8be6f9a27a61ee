"""Memory by formulas: what changes with each choice, and by how much."""

from dataclasses import replace

import pytest

from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.logprobs.chunking import default_chunking
from megatron_dpop.plan.activations import TORCH, TRANSFORMER_ENGINE, layer_activations
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.hardware import ASSUMPTIONS, DEVICES, GIB, device_like, known_device
from megatron_dpop.plan.memory import Memory, device_memory, in_flight, stage_memory
from megatron_dpop.plan.workload import Workload
from tests.megatron_dpop.plan.measured import Pairs
from tests.megatron_dpop.plan.shapes import QWEN_72B

torch = pytest.importorskip("torch")

PAIRS = Pairs(row_tokens=4096, rows=1, prompt_tokens=90, completion_tokens=190, common_tokens=95)
BASE = LayoutChoice(tensor=8, pipeline=4, data=2)


def _workload(examples: int = 512) -> Workload:
    return PAIRS.workload(PAIRS.config(pairs=examples))


def _memory(choice: LayoutChoice) -> Memory:
    return device_memory(QWEN_72B, _workload(), choice, TRANSFORMER_ENGINE, ASSUMPTIONS)


def test_recomputation_trades_activations() -> None:
    none, selective, full = (_memory(replace(BASE, recompute=how)) for how in ("none", "selective", "full"))
    assert none.activations > selective.activations > 5 * full.activations
    assert none.weights == full.weights


def test_full_recomputation_keeps_the_layers_inputs_alone() -> None:
    row = _workload().row(BASE)
    layer = layer_activations(QWEN_72B, BASE, row, TRANSFORMER_ENGINE)
    assert layer.kept("full") == row.tokens * QWEN_72B.hidden_size / BASE.tensor * 2


def test_lora_trains_adapters_alone() -> None:
    lora = LoraConfig(rank=16)
    full, adapted = _memory(BASE), _memory(replace(BASE, lora=lora))
    # Per layer and rank: A [16, inputs] and B [outputs, 16] of four linear layers, one side of each split over 8.
    adapters = 20 * 16 * ((3 * 1024 + 8192) + (8192 + 1024) + (2 * 3072 + 8192) + (8192 + 3072))
    assert adapted.gradients == 4 * adapters
    assert adapted.optimizer == 12 * adapters / BASE.data
    assert adapted.weights == pytest.approx(full.weights + 2 * adapters)


def test_optimizer_on_the_host_leaves_the_device() -> None:
    here, there = _memory(BASE), _memory(replace(BASE, offload_optimizer=True))
    assert there.optimizer == 0
    assert there.host == pytest.approx(here.optimizer * 16 / 12)  # state and the gradients to update it with


def test_overlap_takes_twelve_buffers_of_whole_rows() -> None:
    plain, overlapped = _memory(BASE), _memory(replace(BASE, overlap_tensor=True))
    row = 4096 * QWEN_72B.hidden_size
    longer = _workload().row(replace(BASE, overlap_tensor=True)).tokens
    assert longer == 4096
    buffers = overlapped.buffers - plain.buffers
    assert buffers == pytest.approx(12 * 2 * row, rel=0.01)  # and the fragmentation of a row that is a little longer
    fp8 = [_memory(replace(BASE, fp8=True, overlap_tensor=overlap)).buffers for overlap in (False, True)]
    assert fp8[1] - fp8[0] == pytest.approx((8 + 4 * 2) * row, rel=0.01)


def test_fp8_adds_two_copies_of_linear_weights_and_halves_their_inputs() -> None:
    bf16, fp8 = _memory(BASE), _memory(replace(BASE, fp8=True))
    alone = _memory(replace(BASE, fp8=True, fp8_params=True))
    assert bf16.weights * 1.8 < fp8.weights < bf16.weights * 2
    assert alone.weights == pytest.approx(bf16.weights)
    assert fp8.activations < bf16.activations


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (LayoutChoice(pipeline=4), [4, 3, 2, 1]),
        # Megatron-Core's warm-up of an interleaved pipeline: 2 a later stage, a round of stages a chunk but one, and
        # the one that runs.
        (LayoutChoice(pipeline=4, virtual_pipeline=2), [11, 9, 7, 5]),
    ],
)
def test_rows_in_flight(choice: LayoutChoice, expected: list[int]) -> None:
    assert [in_flight(choice, 8, stage) for stage in range(4)] == expected
    assert [in_flight(choice, 1, stage) for stage in range(4)] == [choice.chunks] * 4 if choice.chunks > 1 else [1] * 4


def test_the_fullest_stage_is_the_one_that_counts() -> None:
    choice = replace(BASE, pipeline=8)
    stages = [
        stage_memory(QWEN_72B, _workload(), choice, TRANSFORMER_ENGINE, ASSUMPTIONS, stage)
        for stage in range(choice.pipeline)
    ]
    assert _memory(choice) == max(stages, key=lambda memory: memory.total)


def test_tiles_are_those_of_the_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for kernels, device in ((TORCH, "cpu"), (TRANSFORMER_ENGINE, "cuda")):
        chunking = default_chunking(torch.device(device))
        assert kernels.tile == (chunking.tokens, chunking.vocab)


def test_devices_are_recognised_by_cudas_name() -> None:
    assert device_like("NVIDIA H200", 139 * GIB) == replace(DEVICES["h200"], name="NVIDIA H200", memory_bytes=139 * GIB)
    assert known_device("NVIDIA H100 80GB HBM3") is DEVICES["h100"]
    assert known_device("NVIDIA A100-SXM4-80GB") is DEVICES["a100"]
    for other in ("Some GPU", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB"):
        assert known_device(other) is None
    assert device_like("Some GPU", 40 * GIB).bf16_flops == DEVICES["h100"].bf16_flops
