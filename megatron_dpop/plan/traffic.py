"""Bytes that one device sends in a training step, by purpose, and over which wire.

A ring all-gather or reduce-scatter of V bytes over n ranks sends (n - 1) / n * V from each; an all-reduce is one of
each (Thakur et al. 2005). Which tensors travel: Narayanan et al. 2021, section 3, and Korthikanti et al. 2022,
section 4.2.2, for tensor and sequence parallelism.
"""

from dataclasses import dataclass

from dpop_base.architectures import Architecture
from megatron_dpop.plan.activations import FP8, FP32
from megatron_dpop.plan.choice import LayoutChoice, Widths
from megatron_dpop.plan.hardware import Hardware
from megatron_dpop.plan.mixtures import mixture_bytes_sent
from megatron_dpop.plan.parameters import stage_parameters
from megatron_dpop.plan.workload import MeanRow, Workload

SCORE_STATISTICS = 3  # numbers of a scored token that tensor-parallel ranks exchange (`logprobs.statistics`)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device sends in one step."""

    tensor: float  # activations and their gradients, over the tensor-parallel group
    context: float  # keys and values, and their gradients
    expert: float  # hidden states to their experts and back, and their gradients
    pipeline: float  # activations to the next stage, gradients to the one before
    data: float  # gradients and weights, over the ranks with equal weights
    host: float = 0.0  # optimizer on the CPU: gradients down, weights up


@dataclass(frozen=True)
class RowTraffic:
    """Bytes that one row costs a device of a stage, forward and backward (recomputation counted in backward)."""

    tensor_forward: float
    tensor_backward: float
    context_forward: float
    context_backward: float
    expert_forward: float
    expert_backward: float
    pipeline: float  # each way


def ring(size: float, ranks: int) -> float:
    """Bytes that each rank sends to all-gather, or reduce-scatter, `size` bytes."""
    return size * (ranks - 1) / ranks


def row_traffic(architecture: Architecture, choice: LayoutChoice, row: MeanRow, stage: int) -> RowTraffic:
    numbers = choice.layers_of_stage(architecture.num_layers, stage)
    layers, mixtures = len(numbers), architecture.mixtures_among(numbers)
    tokens = row.tokens / choice.context
    hidden = tokens * architecture.hidden_size * choice.bytes
    unit = ring(hidden, choice.tensor)
    # Forward: a gather before and a scatter after each half of a layer (or one all-reduce after, which is both).
    # Backward mirrors it; split inputs of the gathering layers are gathered again for their weights' gradients.
    # A mixture's tokens go to their experts split as they are; only a shared expert has its half of the layer gathered.
    gathers_mixtures = architecture.experts is not None and architecture.experts.shared_ffn_hidden_size is not None
    halves = 2 * layers - (0 if gathers_mixtures else mixtures)
    forward = halves * 2 * unit
    again = forward if choice.recompute == "full" else 0.0
    backward = forward + (halves * unit if choice.sequence else 0.0) + again
    to_experts = mixtures * mixture_bytes_sent(architecture, choice, row) if mixtures else 0.0
    keys = ring(2 * row.tokens * Widths.of(architecture, choice).key * choice.bytes, choice.context)
    ends_forward, ends_backward = _ends(architecture, choice, row, stage, unit)
    return RowTraffic(
        tensor_forward=forward + ends_forward,
        tensor_backward=backward + ends_backward,
        context_forward=layers * keys,
        context_backward=layers * keys * (1 if choice.recompute == "none" else 2),
        expert_forward=to_experts,
        expert_backward=to_experts * (2 if choice.recompute == "full" else 1),
        pipeline=hidden / choice.sequence_shards * choice.chunks if choice.pipeline > 1 else 0.0,
    )


def _ends(
    architecture: Architecture, choice: LayoutChoice, row: MeanRow, stage: int, unit: float
) -> tuple[float, float]:
    """Forward and backward, of the embedding and the output layer where this stage has them."""
    forward = backward = 0.0
    if stage == 0:  # a scatter and a gather, or one all-reduce
        forward += unit if choice.sequence else 2 * unit
        backward += unit if choice.sequence else 0.0
    if stage == choice.pipeline - 1:
        scores = row.scores / choice.context
        forward += ring(choice.tensor * scores * SCORE_STATISTICS * FP32, choice.tensor)
        if choice.sequence:
            forward += unit
            backward += unit
        else:
            backward += 2 * ring(scores * architecture.hidden_size * choice.bytes, choice.tensor)
    return forward, backward


def data_traffic(architecture: Architecture, choice: LayoutChoice, stage: int) -> tuple[float, float]:
    """Bytes that a device sends a step: (gradients, weights). Gradients are fp32; experts are on fewer ranks."""
    parameters = stage_parameters(architecture, choice, stage)
    experts = parameters.trainable_experts(choice.lora)
    others = parameters.trainable(choice.lora) - experts
    gradients = ring(FP32 * others, choice.data_shards) + ring(FP32 * experts, choice.expert_data_shards)
    if not choice.distributed_optimizer:
        return 2 * gradients, 0.0
    in_fp8 = parameters.linear if choice.fp8_params and choice.lora is None else 0
    weights = FP8 * in_fp8 + choice.bytes * (others - in_fp8)
    return gradients, ring(weights, choice.data_shards) + ring(choice.bytes * experts, choice.expert_data_shards)


def host_traffic(architecture: Architecture, choice: LayoutChoice, stage: int) -> float:
    """Bytes a step between a device and its host's memory, for the optimizer there."""
    if not choice.offload_optimizer:
        return 0.0
    return (FP32 + choice.bytes) * stage_parameters(architecture, choice, stage).shared_out(choice)


def step_traffic(architecture: Architecture, workload: Workload, choice: LayoutChoice, stage: int = 0) -> Traffic:
    """Returns the traffic of each device of one pipeline stage."""
    rows = workload.rows(choice)
    row = row_traffic(architecture, choice, workload.row(choice), stage)
    # Activations go on from every stage but the last, gradients back from every one but the first; of an interleaved
    # pipeline's chunks only the model's first and last have an end.
    ends = (stage == 0) + (stage == choice.pipeline - 1)
    sends = 2 - ends / choice.chunks if choice.pipeline > 1 else 0.0
    return Traffic(
        tensor=rows * (row.tensor_forward + row.tensor_backward),
        context=rows * (row.context_forward + row.context_backward),
        expert=rows * (row.expert_forward + row.expert_backward),
        pipeline=rows * sends * row.pipeline,
        data=sum(data_traffic(architecture, choice, stage)),
        host=host_traffic(architecture, choice, stage),
    )


def wire_bandwidths(choice: LayoutChoice, hardware: Hardware) -> dict[str, float]:
    """Bytes per second of the slowest wire that each purpose crosses.

    Ranks are ordered tensor, context, data, pipeline, fastest first (Megatron-Core's default), so a group stays
    within a node if it and all before it fit there.
    """
    spans = {
        "tensor": choice.tensor,
        "context": choice.tensor * choice.context,
        "expert": choice.expert_tensor * choice.expert,
        "data": choice.tensor * choice.context * choice.data,
        "pipeline": choice.devices,
    }
    wires = {
        name: hardware.node_bandwidth if span <= hardware.node_devices else hardware.network_bandwidth
        for name, span in spans.items()
    }
    if spans["expert"] > hardware.node_devices:  # of what goes to every rank alike, the node's own share takes NVLink
        wires["expert"] *= (spans["expert"] - 1) / (spans["expert"] - hardware.node_devices)
    return wires
