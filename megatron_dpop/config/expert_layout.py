"""Whether a mixture's experts can be cut over ranks as asked, and what a run with them cannot do."""

from dataclasses import asdict
from typing import Protocol

from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.config.schema import Config


class ExpertLayout(Protocol):
    """What `ModelLayout` says of experts."""

    @property
    def tensor(self) -> int: ...
    @property
    def sequence(self) -> bool: ...
    @property
    def expert(self) -> int: ...
    @property
    def expert_tensor(self) -> int: ...
    @property
    def overlap_tensor(self) -> bool: ...


def check_expert_layout(architecture: Architecture, layout: ExpertLayout) -> None:
    """Raises UserError where the layers' experts cannot be cut this way, or where there are none to cut."""
    experts = architecture.experts
    if experts is None:
        for key, size in (("expert", layout.expert), ("expert_tensor", layout.expert_tensor)):
            if size > 1:
                raise UserError(f"parallel.{key}: {size}, and {architecture.family} has no experts; leave it out")
        return
    if experts.count % layout.expert:
        fitting = [size for size in range(1, experts.count + 1) if experts.count % size == 0]
        raise UserError(
            f"parallel.expert: {layout.expert} does not divide the model's {experts.count} experts; "
            f"use one of {fitting}"
        )
    if experts.ffn_hidden_size % layout.expert_tensor:
        raise UserError(
            f"parallel.expert_tensor: {layout.expert_tensor} does not divide the experts' FFN size "
            f"{experts.ffn_hidden_size}; use a size that does"
        )
    if experts.shared_ffn_hidden_size is not None and experts.shared_ffn_hidden_size % layout.tensor:
        raise UserError(
            f"parallel.tensor: {layout.tensor} does not divide the shared expert's FFN size "
            f"{experts.shared_ffn_hidden_size}; use a size that does"
        )
    if layout.tensor > 1 and not layout.sequence:
        raise UserError(
            "parallel.sequence: false, and with parallel.tensor every rank would send the same tokens to the experts; "
            "leave it out"
        )
    if layout.overlap_tensor:
        raise UserError("parallel.overlap_tensor: has not been tried with experts; leave it out")


def adapts_experts(config: Config) -> bool:
    """True where a mixture's experts would have adapters."""
    return config.lora is not None and any(target.startswith("linear_fc") for target in config.lora.targets)


def check_with_experts(config: Config, architecture: Architecture) -> None:
    """Raises UserError for a key of experts where there are none, or that a model with experts cannot go with yet."""
    if architecture.experts is None:
        for key, value in asdict(config.experts).items():
            if value:
                raise UserError(f"experts.{key}: {value}, and {architecture.family} has no experts; leave it out")
        return
    if adapts_experts(config) and config.lora and config.lora.dropout and config.parallel.expert_tensor > 1:
        raise UserError(
            f"lora.dropout: {config.lora.dropout:g}, and with parallel.expert_tensor {config.parallel.expert_tensor} "
            "ranks that share an expert would drop other entries of the same tokens; leave one of them out"
        )
    untried = {
        "precision.fp8": config.precision.fp8 is not None,
        "optimizer.offload": config.optimizer.offload,
        "train.offload_activations": config.train.offload_activations,
    }
    for key, is_set in untried.items():
        if is_set:
            raise UserError(f"{key}: has not been tried with experts, and might compute wrongly; leave it out")
