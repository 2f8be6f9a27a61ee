"""The losses by their names in the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dpop_base.choices import ExampleKind
from megatron_dpop.config.load import read_loss
from megatron_dpop.config.losses import DpoConfig, LossConfig, NamedLossConfig, PairLossConfig, SumConfig
from megatron_dpop.losses import anchored, displacement, margin, reference_free
from megatron_dpop.losses.aft import aft_loss
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.cpo import cpo_loss
from megatron_dpop.losses.dpo import dpo_loss
from megatron_dpop.losses.dpop import dpop_loss
from megatron_dpop.losses.hinge import hinge_loss
from megatron_dpop.losses.ipo import ipo_loss
from megatron_dpop.losses.kto import kto_loss
from megatron_dpop.losses.likelihood import add_chosen_likelihood
from megatron_dpop.losses.sft import sft_loss


@dataclass(frozen=True)
class LossDefinition:
    """What computes a loss, and what it needs."""

    function: Callable[..., LossOutput]
    kind: ExampleKind = "pair"
    needs_reference: bool = True
    needs_kl: bool = False  # the function also takes `kl`, a detached scalar that is constant over the step
    needs_progress: bool = False  # the function also takes `progress`, the share of the run's steps that were taken


# By name, as in `megatron_dpop.config.losses`, which has the keys of each.
REGISTRY: Mapping[str, LossDefinition] = {
    "dpo": LossDefinition(dpo_loss),
    "dpop": LossDefinition(dpop_loss),
    "ipo": LossDefinition(ipo_loss),
    "hinge": LossDefinition(hinge_loss),
    "robust": LossDefinition(margin.robust_loss),
    "exo": LossDefinition(margin.exo_loss),
    "discopop": LossDefinition(margin.discopop_loss),
    "apo_zero": LossDefinition(anchored.apo_zero_loss),
    "apo_down": LossDefinition(anchored.apo_down_loss),
    "nca": LossDefinition(anchored.nca_loss),
    "bco": LossDefinition(anchored.bco_loss),
    "sppo_hard": LossDefinition(anchored.sppo_hard_loss),
    "cal_dpo": LossDefinition(displacement.cal_dpo_loss),
    "dpo_shift": LossDefinition(displacement.dpo_shift_loss, needs_progress=True),
    "bpo": LossDefinition(displacement.bpo_loss),
    "cpo": LossDefinition(cpo_loss, needs_reference=False),
    "simpo": LossDefinition(reference_free.simpo_loss, needs_reference=False),
    "orpo": LossDefinition(reference_free.orpo_loss, needs_reference=False),
    "kto": LossDefinition(kto_loss, "single", needs_kl=True),
    "aft": LossDefinition(aft_loss, "group", needs_reference=False),
    "sft": LossDefinition(sft_loss, "sft", needs_reference=False),
}


class Loss(Protocol):
    """A loss with its options: call it with a batch."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> ExampleKind:
        """What an example of this loss is made of."""

    @property
    def needs_reference(self) -> bool:
        """Whether batches must carry reference log-probabilities."""

    @property
    def needs_kl(self) -> bool:
        """Whether the call must pass `kl`."""

    @property
    def tail_weight(self) -> float:
        """What tokens beyond the length of the example's shortest completion count in a completion's sum."""

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        """Computes losses [examples] and metrics of the batch.

        Args:
            kl: nats, scalar; exactly where `needs_kl` says so.
            progress: share of the run's steps that were taken, 0 to 1; used by losses with a schedule.
        """


@dataclass(frozen=True)
class NamedLoss(Loss):
    """One entry of the registry with its options."""

    options: NamedLossConfig

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def definition(self) -> LossDefinition:
        return REGISTRY[self.name]

    @property
    def kind(self) -> ExampleKind:
        return self.definition.kind

    @property
    def needs_reference(self) -> bool:
        return self.definition.needs_reference

    @property
    def needs_kl(self) -> bool:
        return self.definition.needs_kl

    @property
    def tail_weight(self) -> float:
        return self.options.ld_alpha if isinstance(self.options, DpoConfig) else 1.0

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        assert (kl is not None) == self.needs_kl, f"loss {self.name} and kl do not fit"
        extra: dict[str, Any] = {"kl": kl} if self.needs_kl else {}
        if self.definition.needs_progress:
            extra["progress"] = progress
        output = self.definition.function(batch, self.options, **extra)
        if isinstance(self.options, PairLossConfig) and self.options.nll_weight:
            return add_chosen_likelihood(output, batch, self.options.nll_weight)
        return output


@dataclass(frozen=True)
class WeightedSum(Loss):
    """A sum of pair losses, each with its weight: what TRL calls `loss_weights`."""

    terms: tuple[tuple[float, NamedLoss], ...]
    name: str = "sum"
    kind: ExampleKind = "pair"
    needs_kl: bool = False
    tail_weight: float = 1.0

    @property
    def needs_reference(self) -> bool:
        return any(loss.needs_reference for _, loss in self.terms)

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        """Sums the terms. Its metrics: the first term's, what others add, and `loss/NAME`, each before its weight."""
        outputs = [(weight, loss.name, loss(batch, progress=progress)) for weight, loss in self.terms]
        metrics: dict[str, Tensor] = {}
        for _, name, output in outputs:
            metrics = {**output.metrics, **metrics, f"loss/{name}": output.losses.detach()}
        return LossOutput(torch.stack([weight * output.losses for weight, _, output in outputs]).sum(0), metrics)


def make_loss(values: Mapping[str, object]) -> Loss:
    """Returns a loss from its name and keys as a config writes them. Raises UserError."""
    return build_loss(read_loss(values))


def build_loss(section: LossConfig) -> Loss:
    """Returns the loss that a config's section `loss` describes."""
    if isinstance(section, SumConfig):
        return WeightedSum(tuple((term.weight, NamedLoss(term.loss)) for term in section.terms))
    return NamedLoss(section)
