"""How a model is cut over ranks, and whether it can be cut so. No torch, no Megatron: checked before a rank starts."""

import math
from dataclasses import dataclass

from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.config.expert_layout import check_expert_layout
from megatron_dpop.config.schema import ParallelConfig

# Tensor cores want the vocabulary of each rank in multiples of 16.
VOCABULARY_MULTIPLE = 16


@dataclass(frozen=True)
class ModelLayout:
    """How a model is cut: sizes of the parallel groups and what follows from them for the model's shape."""

    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False
    pad_heads: bool = False
    virtual_pipeline: int | None = None
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    overlap_tensor: bool = False

    @staticmethod
    def of(parallel: ParallelConfig) -> "ModelLayout":
        return ModelLayout(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            sequence=parallel.sequence,
            pad_heads=parallel.pad_heads,
            virtual_pipeline=parallel.virtual_pipeline,
            first_stage_layers=parallel.first_stage_layers,
            last_stage_layers=parallel.last_stage_layers,
            context=parallel.context,
            expert=parallel.expert,
            expert_tensor=parallel.expert_tensor,
            overlap_tensor=parallel.overlap_tensor,
        )

    def stage_layers(self, layers: int) -> list[float]:
        """Layers of each pipeline stage; not whole where the stages cannot be equal."""
        given = {0: self.first_stage_layers, self.pipeline - 1: self.last_stage_layers}
        given = {stage: count for stage, count in given.items() if count is not None}
        others = self.pipeline - len(given)
        rest = layers - sum(count for count in given.values() if count is not None)
        return [float(given.get(stage) or rest / others) for stage in range(self.pipeline)]

    def layers_of_stage(self, layers: int, stage: int) -> list[int]:
        """Numbers, from 0, of the layers of a pipeline stage: a run of them for each model chunk."""
        chunks = self.virtual_pipeline or 1
        counts = [int(count) // chunks for count in self.stage_layers(layers)]
        first = sum(counts[:stage])
        return [chunk * sum(counts) + first + at for chunk in range(chunks) for at in range(counts[stage])]


def padded_vocabulary(vocab_size: int, tensor: int) -> int:
    multiple = VOCABULARY_MULTIPLE * tensor
    return -(-vocab_size // multiple) * multiple


def padded_key_value_heads(architecture: Architecture, layout: ModelLayout) -> int:
    """Key/value heads of the built model: with `pad_heads`, rounded up to a multiple of the tensor-parallel size."""
    heads = architecture.num_key_value_heads
    return -(-heads // layout.tensor) * layout.tensor if layout.pad_heads else heads


def check_layout(architecture: Architecture, layout: ModelLayout) -> None:
    """Raises UserError where the model cannot be cut this way."""
    tensor, heads, kv_heads = (
        layout.tensor,
        architecture.num_attention_heads,
        architecture.num_key_value_heads,
    )
    if not layout.pad_heads and (heads % tensor or kv_heads % tensor):
        fitting = [size for size in range(1, kv_heads + 1) if heads % size == 0 and kv_heads % size == 0]
        raise UserError(
            f"parallel.tensor: {tensor} does not divide the model's {heads} attention heads and {kv_heads} key/value "
            f"heads; use one of {fitting}, or parallel.pad_heads: true to add inert zero heads"
        )
    has_dense_layers = architecture.experts is None or bool(architecture.experts.dense_layers)
    if has_dense_layers and architecture.ffn_hidden_size % tensor:
        raise UserError(
            f"parallel.tensor: {tensor} does not divide the model's FFN size {architecture.ffn_hidden_size}; "
            "use a size that does"
        )
    if layout.sequence and architecture.hidden_size % tensor:
        raise UserError(
            f"parallel.tensor: {tensor} does not divide the model's hidden size {architecture.hidden_size}; "
            "use a size that does, or parallel.sequence: false"
        )
    if layout.overlap_tensor and (tensor == 1 or not layout.sequence):
        raise UserError(
            f"parallel.overlap_tensor: with parallel.tensor {tensor} and parallel.sequence "
            f"{str(layout.sequence).lower()} there is nothing that can be overlapped; leave it out, or use more than "
            "one tensor-parallel rank and parallel.sequence: true"
        )
    check_expert_layout(architecture, layout)
    _check_stages(architecture.num_layers, layout)


def _check_stages(layers: int, layout: ModelLayout) -> None:
    uneven = layout.first_stage_layers is not None or layout.last_stage_layers is not None
    if layout.pipeline == 1 and (uneven or layout.virtual_pipeline is not None):
        key = "virtual_pipeline" if layout.virtual_pipeline is not None else "first_stage_layers and last_stage_layers"
        raise UserError(f"parallel.{key}: there is one pipeline stage; set parallel.pipeline too, or leave it out")
    stages = layout.stage_layers(layers)
    if any(count < 1 or count != int(count) for count in stages) or sum(stages) != layers:
        if uneven:
            raise UserError(
                f"parallel.first_stage_layers, parallel.last_stage_layers: {layout.first_stage_layers} and "
                f"{layout.last_stage_layers} leave no equal number of the model's {layers} layers to each of the other "
                f"of {layout.pipeline} stages; use others"
            )
        raise UserError(
            f"parallel.pipeline: {layout.pipeline} does not divide the model's {layers} layers; use a size that does, "
            "or parallel.first_stage_layers and parallel.last_stage_layers"
        )
    chunks = layout.virtual_pipeline or 1
    if any(count % chunks for count in stages):
        raise UserError(
            f"parallel.virtual_pipeline: {chunks} does not divide the {int(max(stages))} layers of a pipeline stage; "
            "use a number that does"
        )


def row_multiple(layout: ModelLayout, *, fp8: bool) -> int:
    """Rows end on a multiple of this many tokens: of 64 for the kernels, of 16 on every rank that shares them.

    FP8's products take 128 tokens at once; blockwise scales have blocks of that length.
    """
    if layout.overlap_tensor:  # each rank's share is sent in up to four pieces of 16
        return (128 if fp8 else 64) * layout.tensor * layout.context
    return math.lcm(128 * layout.context if fp8 else 64, 16 * layout.tensor * layout.context)


def check_row_tokens(row_tokens: int, layout: ModelLayout, *, fp8: bool = False) -> None:
    """Raises UserError where a full row cannot be shared evenly by tensor- and context-parallel ranks."""
    multiple = row_multiple(layout, fp8=fp8)
    shares = (layout.tensor if layout.sequence else 1) * (2 * layout.context if layout.context > 1 else 1)
    if row_tokens % (multiple if layout.overlap_tensor else shares):
        raise UserError(
            f"data.row_tokens: {row_tokens} does not divide over parallel.tensor {layout.tensor} x parallel.context "
            f"{layout.context} ranks; use a multiple of {multiple}, such as {-(-row_tokens // multiple) * multiple}"
        )
