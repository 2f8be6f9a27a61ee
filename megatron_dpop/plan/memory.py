"""Bytes that a device holds at its peak, by part, for each pipeline stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from dpop_base.architectures import Architecture
from megatron_dpop.plan.activations import (
    FP8,
    FP32,
    Kernels,
    backward_bytes,
    layer_activations,
    logprob_bytes,
    score_bytes,
)
from megatron_dpop.plan.choice import BYTES, LayoutChoice
from megatron_dpop.plan.hardware import Assumptions
from megatron_dpop.plan.parameters import Parameters, stage_parameters
from megatron_dpop.plan.workload import MeanRow, Workload

# A linear layer's weight is multiplied in both directions, and Hopper's FP8 products read only one: two copies.
FP8_COPIES = 2
# Transformer Engine's buffers of overlapped communication (`initialize_ub`): of inputs that are gathered, which travel
# in FP8 where layers multiply in it, and of outputs that are summed.
GATHERED_BUFFERS, SUMMED_BUFFERS = 8, 4


def optimizer_bytes(choice: LayoutChoice) -> int:
    """Returns a trained entry's: AdamW's two moments, and beside bf16 weights an fp32 copy (as Megatron-Core has)."""
    return 2 * BYTES[choice.optimizer_state] + (FP32 if choice.params == "bf16" else 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. Log-probabilities and the layers' backward passes come one after the other."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept from forward to backward, of all rows in flight
    logprob_chunk: float
    backward: float  # one layer's recomputed activations and gradients
    buffers: float  # allowance: CUDA context, libraries' workspaces, NCCL, fragmentation
    host: float = 0.0  # of the host's memory, for this device

    @property
    def total(self) -> float:
        return sum(self.held().values())

    def held(self) -> dict[str, float]:
        """What adds up to the total, by part."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "working memory": max(self.logprob_chunk, self.backward),
            "buffers": self.buffers,
        }


def device_memory(
    architecture: Architecture,
    workload: Workload,
    choice: LayoutChoice,
    kernels: Kernels,
    assumptions: Assumptions | None,
) -> Memory:
    """Returns the fullest pipeline stage's memory. Without `assumptions`, what tensors alone take."""
    # Stages between hold what the second does, or less.
    stages = sorted({0, min(1, choice.pipeline - 1), choice.pipeline - 1})
    every = [stage_memory(architecture, workload, choice, kernels, assumptions, stage) for stage in stages]
    return max(every, key=lambda memory: memory.total)


def stage_memory(
    architecture: Architecture,
    workload: Workload,
    choice: LayoutChoice,
    kernels: Kernels,
    assumptions: Assumptions | None,
    stage: int,
) -> Memory:
    """Returns the memory of each device of one pipeline stage."""
    parameters = stage_parameters(architecture, choice, stage)
    row = workload.row(choice)
    trainable = parameters.trainable(choice.lora)
    state_entries = parameters.shared_out(choice)
    optimizer = optimizer_bytes(choice) * state_entries
    kinds = _layers_by_kind(architecture, choice, stage)
    activations = _activations(architecture, workload, choice, kernels, stage, kinds)
    is_last = stage == choice.pipeline - 1
    backward = max(
        layer_activations(architecture, choice, row, kernels, mixture=mixture).recomputed(choice.recompute)
        + backward_bytes(architecture, choice, row, mixture=mixture)
        for mixture in kinds
    )
    logprob = logprob_bytes(architecture, choice, row, kernels) if is_last else 0.0
    buffers = _gather_buffer(architecture, choice, row, kernels) + _overlap_buffers(architecture, choice, row)
    if assumptions is not None:
        buffers += assumptions.context_bytes + _groups(choice) * assumptions.communicator_bytes
        buffers += assumptions.fragmentation * (activations + max(backward, logprob))
    return Memory(
        weights=weight_bytes(parameters, choice),
        gradients=FP32 * trainable,  # `grad_reduce_in_fp32`: one fp32 buffer, never split
        optimizer=0.0 if choice.offload_optimizer else optimizer,
        activations=activations,
        logprob_chunk=logprob,
        backward=backward,
        buffers=buffers,
        # The host also holds the gradients that it updates with.
        host=optimizer + FP32 * state_entries if choice.offload_optimizer else 0.0,
    )


def weight_bytes(parameters: Parameters, choice: LayoutChoice) -> float:
    """Counts FP8 weights too: linear layers keep both forms of them between micro-batches, beside bf16 or alone."""
    linear = choice.bytes if not choice.fp8_params else 0
    linear += FP8_COPIES if choice.fp8 else 0
    others = parameters.output + parameters.other + parameters.experts
    others += parameters.adapters + parameters.expert_adapters
    return linear * parameters.linear + choice.bytes * others


def in_flight(choice: LayoutChoice, rows: int, stage: int) -> int:
    """Most (row, model chunk) pairs whose activations a stage holds at once.

    1F1B (Narayanan et al. 2021): as many rows as there are stages from this one on. Interleaved, as Megatron-Core
    0.19's `get_pp_rank_microbatches` warms up: two chunks a later stage, and a round of stages for each chunk but one.
    """
    later = choice.pipeline - 1 - stage
    if choice.virtual_pipeline is None:
        return min(later + 1, rows)
    return min(2 * later + (choice.chunks - 1) * choice.pipeline + 1, rows * choice.chunks)


def _activations(
    architecture: Architecture,
    workload: Workload,
    choice: LayoutChoice,
    kernels: Kernels,
    stage: int,
    kinds: Mapping[bool, int],
) -> float:
    """`kinds`: as `_layers_by_kind` gives them."""
    rows = workload.rows(choice)
    row = workload.row(choice)
    chunks = in_flight(choice, rows, stage)
    kept = sum(
        layers
        / choice.chunks
        * layer_activations(architecture, choice, row, kernels, mixture=mixture).kept(choice.recompute)
        for mixture, layers in kinds.items()
    )
    hidden = row.tokens / choice.context * architecture.hidden_size / choice.sequence_shards
    is_last = stage == choice.pipeline - 1
    # Boundary tensors stay in the schedule's lists (`deallocate_pipeline_outputs` is off); a received one is the very
    # tensor that the first norm, or recomputation, keeps anyway.
    if not is_last or choice.chunks > 1:
        kept += hidden * choice.bytes
    rotations = 1 if architecture.sliding_rope_theta is None else 2
    angles = rotations * row.tokens / choice.context * architecture.rotary_dim * FP32
    total = chunks * (kept + angles)
    if is_last:
        total += hidden * choice.bytes + score_bytes(architecture, choice, row)
    return total


def _layers_by_kind(architecture: Architecture, choice: LayoutChoice, stage: int) -> dict[bool, int]:
    """Layers of a stage with a mixture of experts (True) and without, where there are such."""
    numbers = choice.layers_of_stage(architecture.num_layers, stage)
    mixtures = architecture.mixtures_among(numbers)
    return {mixture: count for mixture, count in ((True, mixtures), (False, len(numbers) - mixtures)) if count}


def _gather_buffer(architecture: Architecture, choice: LayoutChoice, row: MeanRow, kernels: Kernels) -> float:
    """Megatron-Core's own linear layers gather sequence-parallel inputs into one buffer that stays."""
    if not kernels.gather_buffer or not choice.sequence or choice.tensor == 1:
        return 0.0
    return row.tokens / choice.context * architecture.hidden_size * choice.bytes


def _overlap_buffers(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    if not choice.overlap_tensor:
        return 0.0
    gathered = FP8 if choice.fp8 else choice.bytes
    entries = row.tokens / choice.context * architecture.hidden_size
    return entries * (GATHERED_BUFFERS * gathered + SUMMED_BUFFERS * choice.bytes)


def _groups(choice: LayoutChoice) -> int:
    """Groups of several ranks that a device is in."""
    sizes = (choice.tensor, choice.pipeline, choice.context, choice.data_shards, choice.expert, choice.expert_tensor)
    return sum(size > 1 for size in sizes)
