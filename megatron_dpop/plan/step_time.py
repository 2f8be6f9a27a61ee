"""Seconds of a training step: a roofline with stated shares of the peaks, and a pipeline's bubble on top.

Hidden behind computation are what Megatron-Core is told to overlap: the reduction of gradients behind the last row's
backward pass, the gathering of weights behind the first row's forward pass, the transfers of an interleaved pipeline,
and where it is asked for the tensor-parallel collectives behind the products that they feed, but for the first of the
pieces that they are cut into. Context-parallel collectives and the transfers of a plain pipeline are not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpop_base.architectures import Architecture
from megatron_dpop.config.layout import padded_vocabulary
from megatron_dpop.plan.activations import Kernels, layer_activations
from megatron_dpop.plan.choice import LayoutChoice, Widths
from megatron_dpop.plan.flops import example_training_flops
from megatron_dpop.plan.hardware import Assumptions, Hardware
from megatron_dpop.plan.memory import optimizer_bytes
from megatron_dpop.plan.mixtures import mixture_products
from megatron_dpop.plan.parameters import layer_matrices, stage_parameters
from megatron_dpop.plan.traffic import data_traffic, host_traffic, row_traffic, wire_bandwidths
from megatron_dpop.plan.workload import MeanRow, Workload

# Flash attention's backward pass multiplies five times where its forward pass multiplies twice (Dao et al. 2022).
ATTENTION_BACKWARD = 2.5
# A kept tensor is written and read in the forward pass; backward reads it, and writes and reads its gradient.
FORWARD_PASSES, BACKWARD_PASSES = 2, 3


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on the slowest pipeline stage, and what they come to."""

    compute: float
    tensor: float
    context: float
    expert: float
    pipeline: float
    bubble: float
    data: float
    optimizer: float
    step: float  # the sum of the above
    examples_per_second: float
    tokens_per_second: float  # of rows, padding not counted
    model_flops_utilisation: float  # the FLOPs needed over the devices' bf16 peak (PaLM, appendix B)


@dataclass(frozen=True)
class _RowTime:
    """Seconds of one row on one stage."""

    forward: float
    backward: float
    tensor: float
    context: float
    expert: float
    pipeline: float

    @property
    def compute(self) -> float:
        return self.forward + self.backward

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context + self.expert + self.pipeline


def step_time(
    architecture: Architecture,
    workload: Workload,
    choice: LayoutChoice,
    hardware: Hardware,
    kernels: Kernels,
    assumptions: Assumptions,
) -> StepTime:
    rows = workload.rows(choice)
    row = workload.row(choice)
    stages = [_row_time(architecture, choice, row, stage, hardware, kernels, assumptions) for stage in _kinds(choice)]
    slowest = max(stages, key=lambda time: time.total)
    # Stages between are alike. Filling and emptying the pipeline takes each stage one row, or one chunk of it.
    between = (choice.pipeline - len(stages)) * (stages[1].total if len(stages) > 1 else 0.0)
    bubble = (sum(time.total for time in stages) + between - slowest.total) / choice.chunks
    parts = {
        "compute": rows * slowest.compute,
        "tensor": rows * slowest.tensor,
        "context": rows * slowest.context,
        "expert": rows * slowest.expert,
        "pipeline": rows * slowest.pipeline,
        "bubble": bubble,
        "data": _data_seconds(architecture, choice, hardware, assumptions, stages[0]),
        "optimizer": _optimizer_seconds(architecture, choice, hardware, assumptions),
    }
    step = sum(parts.values())
    useful = example_training_flops(architecture, choice.lora, workload.packed) * workload.examples
    return StepTime(
        **parts,
        step=step,
        examples_per_second=workload.examples / step,
        tokens_per_second=workload.examples * workload.packed.tokens / step,
        model_flops_utilisation=useful / (step * choice.devices * hardware.bf16_flops),
    )


def _kinds(choice: LayoutChoice) -> list[int]:
    """One stage of each kind: the first, one between, the last."""
    return sorted({0, min(1, choice.pipeline - 1), choice.pipeline - 1})


def _row_time(
    architecture: Architecture,
    choice: LayoutChoice,
    row: MeanRow,
    stage: int,
    hardware: Hardware,
    kernels: Kernels,
    assumptions: Assumptions,
) -> _RowTime:
    numbers = choice.layers_of_stage(architecture.num_layers, stage)
    layers, mixtures = len(numbers), architecture.mixtures_among(numbers)
    widths = Widths.of(architecture, choice)
    tokens = row.tokens / choice.context
    bf16 = hardware.bf16_flops * assumptions.linear
    in_fp8 = assumptions.fp8_blockwise_linear if choice.fp8_blockwise else assumptions.fp8_linear
    linear_rate = hardware.fp8_flops * in_fp8 if choice.fp8 and hardware.fp8_flops else bf16
    matrices = layer_matrices(widths)
    attention_products = [(tokens, *matrices[name]) for name in ("linear_qkv", "linear_proj")] * layers
    dense_products = [(tokens, *matrices[name]) for name in ("linear_fc1", "linear_fc2")] * (layers - mixtures)
    times = _products(attention_products + dense_products, assumptions.product_depth, linear_rate)
    if mixtures:  # never in FP8
        times += _products(mixture_products(architecture, choice, row) * mixtures, assumptions.product_depth, bf16)
    linear, hidden_gradient, weight_gradient = map(float, times)
    share = assumptions.cudnn_attention if choice.attention_kernel == "cudnn" else assumptions.attention
    keys = row.attended / row.tokens
    share *= keys / (keys + assumptions.attention_keys)
    attention = layers * 4 * row.attended / choice.context * widths.query / (hardware.bf16_flops * share)
    kept = (layers - mixtures) * layer_activations(architecture, choice, row, kernels).whole
    if mixtures:
        kept += mixtures * layer_activations(architecture, choice, row, kernels, mixture=True).whole
    element_wise = kept / (hardware.memory_bandwidth * assumptions.memory)
    forward = linear + attention + FORWARD_PASSES * element_wise
    # Frozen weights need no gradients.
    backward = hidden_gradient + (0.0 if choice.lora else weight_gradient)
    backward += attention * ATTENTION_BACKWARD + BACKWARD_PASSES * element_wise
    if choice.recompute != "none":
        backward += forward if choice.recompute == "full" else attention
    if stage == choice.pipeline - 1:
        vocabulary = padded_vocabulary(architecture.vocab_size, choice.tensor) // choice.tensor
        output = 2 * row.scores / choice.context * architecture.hidden_size * vocabulary / bf16
        forward += output
        backward += output * (2 if choice.lora else 3)  # logits are computed again, tile by tile
    if choice.pipeline > 1:
        forward += choice.chunks * assumptions.chunk_seconds
        backward += choice.chunks * assumptions.chunk_seconds
    traffic = row_traffic(architecture, choice, row, stage)
    tensor_bytes = traffic.tensor_forward + traffic.tensor_backward
    rates = {name: rate * assumptions.collectives for name, rate in wire_bandwidths(choice, hardware).items()}
    tensor = tensor_bytes / rates["tensor"]
    if choice.overlap_tensor:
        tensor = max(tensor / choice.tensor, tensor - 3 * linear)
    return _RowTime(
        forward=forward,
        backward=backward,
        tensor=tensor,
        context=(traffic.context_forward + traffic.context_backward) / rates["context"],
        expert=(traffic.expert_forward + traffic.expert_backward) / rates["expert"],
        pipeline=0.0 if choice.virtual_pipeline else 2 * traffic.pipeline / rates["pipeline"],
    )


def _products(products: list[tuple[float, int, int]], depth: float, rate: float) -> NDArray[np.float64]:
    """Seconds of products of (tokens, outputs, inputs), of their inputs' gradients and of their weights': [3].

    A product sums over its depth: inputs, outputs, tokens. Filling and emptying a tile of results takes as long as
    `depth` entries of it.
    """
    tokens, outputs, inputs = np.array(products, dtype=np.float64).reshape(-1, 3).T
    flops = 2 * tokens * outputs * inputs
    slower = np.array([depth / inputs, depth / outputs, depth / np.maximum(tokens, 1.0)])
    return np.asarray((flops * (1 + slower)).sum(axis=1) / rate)


def _data_seconds(
    architecture: Architecture, choice: LayoutChoice, hardware: Hardware, assumptions: Assumptions, row: _RowTime
) -> float:
    """What computation does not hide of reducing gradients and gathering weights."""
    rate = wire_bandwidths(choice, hardware)["data"] * assumptions.collectives
    gradients, weights = (sent / rate for sent in data_traffic(architecture, choice, 0))
    if not choice.overlap:
        return gradients + weights
    return max(0.0, gradients - row.backward) + max(0.0, weights - row.forward)


def _optimizer_seconds(
    architecture: Architecture, choice: LayoutChoice, hardware: Hardware, assumptions: Assumptions
) -> float:
    """Reads gradients, reads and writes its state, writes weights; its norm reads the gradients once more."""
    entries = stage_parameters(architecture, choice, 0).shared_out(choice)
    touched = (2 * 4 + 2 * optimizer_bytes(choice) + choice.bytes) * entries
    on_device = touched / (hardware.memory_bandwidth * assumptions.memory)
    return (
        on_device if not choice.offload_optimizer else host_traffic(architecture, choice, 0) / hardware.host_bandwidth
    )
