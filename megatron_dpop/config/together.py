"""Which options exclude each other, by what Megatron-Core and Transformer Engine can carry."""

from dpop_base.errors import UserError
from megatron_dpop.config.schema import Config, DataConfig, OptimizerConfig

DECAY_SHARE = OptimizerConfig.__dataclass_fields__["decay_share"].default


def check_together(config: Config) -> None:
    """Raises UserError for the first option whose key excludes another that is set."""
    precision, optimizer = config.precision, config.optimizer
    fp32 = ("precision.params", "fp32") if precision.params == "fp32" else None
    whole = ("optimizer.distributed", "false") if not optimizer.distributed else None
    blockwise = ("precision.fp8", "blockwise") if precision.fp8 == "blockwise" else None
    lora = ("lora", "adapters") if config.lora is not None else None
    full = ("train.recompute", "full") if config.train.recompute == "full" else None
    moments = ("optimizer.state", "bf16") if optimizer.state == "bf16" else None
    # Only delayed scaling's weights can be updated from the host.
    rounded = ("precision.fp8_params", "true") if precision.fp8_params and precision.fp8 != "delayed" else None
    excluded = {
        "parallel.overlap_tensor": (config.parallel.overlap_tensor, (fp32, blockwise, lora)),
        "precision.fp8_params": (precision.fp8_params, (whole,)),
        "kernels.attention": (config.kernels.attention == "cudnn", (fp32,)),
        "experts.freeze_router": (config.experts.freeze_router, (lora,)),
        "optimizer.offload": (optimizer.offload, (fp32, whole, moments, rounded)),
        "optimizer.state": (optimizer.state == "bf16", (whole,)),
        "train.offload_activations": (config.train.offload_activations, (fp32, full)),
    }
    for key, (is_set, others) in excluded.items():
        for other in others:
            if is_set and other is not None:
                raise UserError(f"{key}: does not go with {other[0]}: {other[1]}; leave one of them out")
    _check_schedule(optimizer)
    _check_prompts(config.data)


def _check_schedule(optimizer: OptimizerConfig) -> None:
    if optimizer.schedule == "constant" and optimizer.min_lr:
        raise UserError(
            "optimizer.min_lr: a constant schedule does not fall; set optimizer.schedule too, or leave it out"
        )
    if optimizer.min_lr > optimizer.lr:
        raise UserError(
            f"optimizer.min_lr: {optimizer.min_lr:g} is more than optimizer.lr {optimizer.lr:g}; give at most that"
        )
    if optimizer.schedule != "wsd" and optimizer.decay_share != DECAY_SHARE:
        raise UserError(
            f"optimizer.decay_share: has no effect on schedule {optimizer.schedule}; set optimizer.schedule to wsd, "
            "or leave it out"
        )


def _check_prompts(data: DataConfig) -> None:
    """A chat template takes arguments; plain text is surrounded by other text."""
    is_plain = data.chat_template == "none"
    if is_plain and data.chat_template_kwargs:
        raise UserError("data.chat_template_kwargs: there is no template to take them; data.chat_template is none")
    for key in ("prompt_prefix", "answer_separator"):
        if getattr(data, key) and not is_plain:
            raise UserError(f"data.{key}: is of plain text; set data.chat_template to none, or leave it out")
