"""The losses by their names in the config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from dpop_base.choices import ExampleKind
from dpop_base.errors import UserError
from megatron_dpop.losses import anchored, displacement, margin, reference_free
from megatron_dpop.losses.aft import AftHyperparameters, aft_loss
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.cpo import CpoHyperparameters, cpo_loss
from megatron_dpop.losses.dpo import DpoHyperparameters, dpo_loss
from megatron_dpop.losses.dpop import DpopHyperparameters, dpop_loss
from megatron_dpop.losses.hinge import HingeHyperparameters, hinge_loss
from megatron_dpop.losses.hyperparameters import NumberRule, config_key, read_hyperparameters
from megatron_dpop.losses.ipo import IpoHyperparameters, ipo_loss
from megatron_dpop.losses.kto import KtoHyperparameters, kto_loss
from megatron_dpop.losses.likelihood import PairHyperparameters, add_chosen_likelihood
from megatron_dpop.losses.sft import SftHyperparameters, sft_loss


@dataclass(frozen=True)
class LossDefinition:
    """One entry of the registry."""

    function: Callable[..., LossOutput]
    hyperparameters: type[Any]
    kind: ExampleKind
    needs_reference: bool
    needs_kl: bool = False
    """Whether the function also takes `kl`, a detached scalar that is constant over the step."""
    needs_progress: bool = False
    """Whether the function also takes `progress`, the share of the run's steps that were taken."""


def _pair(function: Callable[..., LossOutput], hyperparameters: type[Any], **needs: bool) -> LossDefinition:
    return LossDefinition(function, hyperparameters, "pair", **{"needs_reference": True, **needs})


REGISTRY: Mapping[str, LossDefinition] = {
    "dpo": _pair(dpo_loss, DpoHyperparameters),
    "dpop": _pair(dpop_loss, DpopHyperparameters),
    "ipo": _pair(ipo_loss, IpoHyperparameters),
    "hinge": _pair(hinge_loss, HingeHyperparameters),
    "robust": _pair(margin.robust_loss, margin.RobustHyperparameters),
    "exo": _pair(margin.exo_loss, margin.ExoHyperparameters),
    "discopop": _pair(margin.discopop_loss, margin.DiscoPopHyperparameters),
    "apo_zero": _pair(anchored.apo_zero_loss, anchored.AnchoredHyperparameters),
    "apo_down": _pair(anchored.apo_down_loss, anchored.AnchoredHyperparameters),
    "nca": _pair(anchored.nca_loss, anchored.AnchoredHyperparameters),
    "bco": _pair(anchored.bco_loss, anchored.AnchoredHyperparameters),
    "sppo_hard": _pair(anchored.sppo_hard_loss, anchored.SppoHyperparameters),
    "cal_dpo": _pair(displacement.cal_dpo_loss, displacement.CalDpoHyperparameters),
    "dpo_shift": _pair(displacement.dpo_shift_loss, displacement.DpoShiftHyperparameters, needs_progress=True),
    "bpo": _pair(displacement.bpo_loss, displacement.BpoHyperparameters),
    "cpo": _pair(cpo_loss, CpoHyperparameters, needs_reference=False),
    "simpo": _pair(reference_free.simpo_loss, reference_free.SimpoHyperparameters, needs_reference=False),
    "orpo": _pair(reference_free.orpo_loss, reference_free.OrpoHyperparameters, needs_reference=False),
    "kto": LossDefinition(kto_loss, KtoHyperparameters, "single", needs_reference=True, needs_kl=True),
    "aft": LossDefinition(aft_loss, AftHyperparameters, "group", needs_reference=False),
    "sft": LossDefinition(sft_loss, SftHyperparameters, "sft", needs_reference=False),
}
SUM = "sum"  # the name of a weighted sum of pair losses
NAMES = (*REGISTRY, SUM)


class Loss(Protocol):
    """A loss with its hyperparameters: call it with a batch."""

    name: str

    @property
    def kind(self) -> ExampleKind:
        """What an example of this loss is made of."""

    @property
    def needs_reference(self) -> bool:
        """Whether batches must carry reference log-probabilities."""

    @property
    def needs_kl(self) -> bool:
        """Whether the call must pass `kl`."""

    def section(self) -> dict[str, object]:
        """Returns the config's section `loss`, every hyperparameter written out."""

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        """Computes losses [examples] and metrics of the batch.

        Args:
            kl: nats, scalar; exactly where `needs_kl` says so.
            progress: share of the run's steps that were taken, 0 to 1; used by losses with a schedule.
        """


@dataclass(frozen=True)
class NamedLoss(Loss):
    """One entry of the registry with its hyperparameters."""

    name: str
    definition: LossDefinition
    hyperparameters: Any

    @property
    def kind(self) -> ExampleKind:
        return self.definition.kind

    @property
    def needs_reference(self) -> bool:
        return self.definition.needs_reference

    @property
    def needs_kl(self) -> bool:
        return self.definition.needs_kl

    def section(self) -> dict[str, object]:
        values = {config_key(item): getattr(self.hyperparameters, item.name) for item in fields(self.hyperparameters)}
        return {"name": self.name, **values}

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        assert (kl is not None) == self.needs_kl, f"loss {self.name} and kl do not fit"
        extra: dict[str, Any] = {"kl": kl} if self.needs_kl else {}
        if self.definition.needs_progress:
            extra["progress"] = progress
        output = self.definition.function(batch, self.hyperparameters, **extra)
        hyperparameters = self.hyperparameters
        if isinstance(hyperparameters, PairHyperparameters) and hyperparameters.nll_weight:
            return add_chosen_likelihood(output, batch, hyperparameters.nll_weight)
        return output


@dataclass(frozen=True)
class WeightedSum(Loss):
    """A sum of pair losses, each with its weight: what TRL calls `loss_weights`."""

    terms: tuple[tuple[float, NamedLoss], ...]
    name: str = SUM
    kind: ExampleKind = "pair"
    needs_kl: bool = False

    @property
    def needs_reference(self) -> bool:
        return any(loss.needs_reference for _, loss in self.terms)

    def section(self) -> dict[str, object]:
        return {"name": self.name, "terms": [{"weight": weight, **loss.section()} for weight, loss in self.terms]}

    def __call__(self, batch: CompletionBatch, *, kl: Tensor | None = None, progress: float = 0.0) -> LossOutput:
        """Sums the terms. Its metrics: the first term's, what others add, and `loss/NAME`, each before its weight."""
        outputs = [(weight, loss.name, loss(batch, progress=progress)) for weight, loss in self.terms]
        metrics: dict[str, Tensor] = {}
        for _, name, output in outputs:
            metrics = {**output.metrics, **metrics, f"loss/{name}": output.losses.detach()}
        return LossOutput(torch.stack([weight * output.losses for weight, _, output in outputs]).sum(0), metrics)


def build_loss(section: Mapping[str, object]) -> Loss:
    """Builds the loss that the config's section `loss` describes.

    Raises:
        UserError: no or unknown name, a key that this loss does not have, or a value outside its range.
    """
    values = dict(section)
    name = values.pop("name", None)
    if name == SUM:
        return _build_sum(values)
    if "name" not in section:
        raise UserError(f"loss.name is missing; give one of {', '.join(NAMES)}")
    definition = REGISTRY.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or definition is None:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        fix = f"did you mean {near[0]}?" if near else f"give one of {', '.join(NAMES)}"
        raise UserError(f"loss.name is {name!r}, which is no loss; {fix}")
    return NamedLoss(name, definition, read_hyperparameters(definition.hyperparameters, name, values))


def _build_sum(values: Mapping[str, object]) -> WeightedSum:
    example = "give a list such as [{name: dpo, weight: 1.0}, {name: bco, weight: 0.2}]"
    for key in values:
        if key != "terms":
            raise UserError(f"loss.{key} has no effect on loss 'sum'; its key is terms, whose entries hold the keys")
    entries = values.get("terms")
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UserError(f"loss.terms is {entries!r}; {example}")
    if len(entries) < 2:
        raise UserError(f"loss.terms has {len(entries)} entries, and a sum needs two; {example}")
    terms = tuple(_build_term(index, entry) for index, entry in enumerate(entries))
    names = [loss.name for _, loss in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"loss.terms names {name} {names.count(name)} times; give each loss once")
    return WeightedSum(terms)


def _build_term(index: int, entry: Mapping[str, object]) -> tuple[float, NamedLoss]:
    where = f"loss.terms[{index}]"
    weight = NumberRule(above=0).read(f"{where}.weight", entry.get("weight", 1.0))
    try:
        loss = build_loss({key: value for key, value in entry.items() if key != "weight"})
    except UserError as error:
        raise UserError(str(error).replace("loss.", f"{where}.", 1)) from None
    if not isinstance(loss, NamedLoss) or loss.kind != "pair":
        fix = (
            "for the likelihood of the chosen answer give nll_weight on another term"
            if loss.kind == "sft"
            else (f"give one of {', '.join(name for name, item in REGISTRY.items() if item.kind == 'pair')}")
        )
        raise UserError(f"{where}.name is {loss.name!r}, which is no loss of one pair; {fix}")
    assert weight is not None
    return weight, loss
