"""Whether a model's shape and a machine allow a run's precision, offloading and overlap. No torch: before a start."""

from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.config.layout import ModelLayout, row_multiple
from megatron_dpop.config.schema import Config
from megatron_dpop.config.together import check_together

# Transformer Engine's FP8 products take operands whose dimensions are multiples of this.
FP8_MULTIPLE = 16


def check_precision(config: Config, architecture: Architecture, layout: ModelLayout, *, gpu: bool) -> None:
    """Raises UserError for what this machine lacks, or the model's shape does not allow."""
    precision = config.precision
    wanted = {
        "precision.fp8": precision.fp8,
        "optimizer.offload": config.optimizer.offload,
        "optimizer.state": "bf16" if config.optimizer.state == "bf16" else None,
        "train.offload_activations": config.train.offload_activations,
        "parallel.overlap_tensor": config.parallel.overlap_tensor,
        "kernels.attention": "cudnn" if config.kernels.attention == "cudnn" else None,
    }
    for key, value in wanted.items():
        if value and not gpu:
            raise UserError(f"{key}: {str(value).lower()} needs an NVIDIA GPU with Transformer Engine; leave it out")
    check_together(config)
    if precision.fp8 is None:
        for name, given in (("fp8_params", precision.fp8_params), ("bf16_end_layers", precision.bf16_end_layers)):
            if given:
                raise UserError(f"precision.{name}: means nothing without precision.fp8; set that too, or leave it out")
        return
    if precision.params != "bf16":
        raise UserError(f"precision.params: {precision.params} does not go with precision.fp8; use bf16")
    if precision.fp8 == "delayed" and precision.bf16_end_layers:
        raise UserError("precision.bf16_end_layers: delayed scaling takes all layers; use another precision.fp8")
    if 2 * precision.bf16_end_layers >= architecture.num_layers:
        raise UserError(
            f"precision.bf16_end_layers: {precision.bf16_end_layers} at each end leave none of the model's "
            f"{architecture.num_layers} layers to FP8; use fewer"
        )
    if precision.bf16_end_layers > architecture.num_layers // layout.pipeline:
        raise UserError(
            f"precision.bf16_end_layers: {precision.bf16_end_layers} are more than the "
            f"{architecture.num_layers // layout.pipeline} layers of a pipeline stage; use fewer"
        )
    multiple = row_multiple(layout, fp8=True)
    if config.data.row_tokens % multiple:
        raise UserError(
            f"data.row_tokens: {config.data.row_tokens} is not a multiple of {multiple}, as FP8 products "
            "on this layout's ranks need; use one that is"
        )
    check_fp8_shape(architecture, layout)


def check_fp8_shape(architecture: Architecture, layout: ModelLayout) -> None:
    """Raises UserError naming the first dimension of a rank's matrices that FP8 products do not take."""
    head = architecture.head_dim
    dimensions = {
        "hidden size": architecture.hidden_size,
        "FFN rows of a tensor-parallel rank": architecture.ffn_hidden_size // layout.tensor,
        "attention rows of a tensor-parallel rank": architecture.num_attention_heads // layout.tensor * head,
        "key/value rows of a tensor-parallel rank": architecture.num_key_value_heads // layout.tensor * head,
    }
    for name, size in dimensions.items():
        if size % FP8_MULTIPLE:
            raise UserError(
                f"precision.fp8: the model's {name}, {size}, is not a multiple of {FP8_MULTIPLE}; "
                "use another parallel.tensor, or no FP8"
            )
