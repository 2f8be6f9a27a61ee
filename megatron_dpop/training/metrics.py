"""Means over all examples of a step, whatever ranks and rows they were on: sums and counts, reduced once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dpop_base.metric_names import DRIFT, LOSS, SOURCE
from megatron_dpop.engine.batches import Examples, ReferenceRoutes, RowBatch, RowSource
from megatron_dpop.engine.engine import Engine
from megatron_dpop.engine.non_finite import FiniteCheck
from megatron_dpop.losses.contract import CompletionBatch, LossOutput
from megatron_dpop.losses.metric_names import metric_names
from megatron_dpop.losses.registry import Loss
from megatron_dpop.runtime.beats import waiting
from megatron_dpop.runtime.devices import to_device
from megatron_dpop.runtime.stop import StopRequest
from megatron_dpop.training.expert_loads import load_metrics, router_loss_metrics, router_losses, take_loads
from megatron_dpop.training.routes import agreement_metrics, count_agreeing
from megatron_dpop.training.timing import StepClock, straggler_metrics


@dataclass(frozen=True)
class RowMetrics:
    """What a pass with a loss collects of a row."""

    sums: Tensor  # fp64 [metrics, 2], sum and count
    drift: Tensor  # fp64 scalar, largest difference of policy and reference
    check: FiniteCheck


class Totals(NamedTuple):
    """Sums over all ranks of what a step counts, from one collective."""

    sums: list[float]  # [2 * metrics], sum and count by turns
    drifts: list[float]  # [data-parallel ranks]
    seconds: list[float]  # [ranks], each rank's own; empty where no step is timed
    stop_votes: list[float]  # as `StopRequest.votes` has them
    loads: list[float]  # [layers * experts], tokens; empty without experts
    agreeing: list[float]  # [layers * 2], of `training.routes`; empty where the reference's routes are unknown
    router_losses: list[float]  # [layers * 2], balance and z; empty without

    @classmethod
    def over_all_ranks(
        cls,
        sums: Tensor,
        drifts: Tensor,
        seconds: Sequence[float],
        stop_votes: Sequence[float],
        *of_experts: Tensor | None,
    ) -> "Totals":
        """Adds up what each rank gives; every rank calls it. One all-reduce and one copy to the host.

        `of_experts`: the last three, as the fields have them.
        """
        from_host = to_device(np.array([*seconds, *stop_votes], dtype=np.float64), sums.device)
        parts = [part.flatten() for part in (sums, drifts, from_host, *of_experts) if part is not None]
        vector = torch.cat(parts)
        with waiting():
            dist.all_reduce(vector)
            values = iter(vector.tolist())
        sizes = [sums.numel(), drifts.numel(), len(seconds), len(stop_votes)]
        sizes += [0 if part is None else part.numel() for part in of_experts]
        return cls(*(list(islice(values, size)) for size in sizes))


class StepMetrics:
    """Collects losses and metrics of a dataset's examples on the last stage and reduces them over all ranks.

    With several sources, each one's metrics are collected too, named `source/NAME/...`.
    """

    def __init__(self, engine: Engine, loss: Loss, dataset: Examples, stop: StopRequest | None = None) -> None:
        self.engine = engine
        self.stop = stop or StopRequest()
        self.loss = loss
        self.dataset = dataset
        self.clock = StepClock()
        # Since the last `reduce`:
        self.agreeing: Tensor | None = None
        self.router_losses: Tensor | None = None
        self.loss_names = metric_names(loss)
        self.sources = dataset.source_names if len(dataset.source_names) > 1 else ()
        self.names = [
            prefix + name for prefix in ("", *(f"{SOURCE}{name}/" for name in self.sources)) for name in self.loss_names
        ]

    def row_loss(
        self, row: RowBatch, logps: Tensor, *, kl: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, RowMetrics]:
        """The `RowLoss` of training and validation; `progress` is the share of the run's steps that were taken."""
        batch = row.completions(logps)
        loss = partial(self.loss, kl=kl, progress=progress)
        output = loss(batch)
        collected = RowMetrics(
            sums=torch.cat([self._sums(output), *self._source_sums(row, batch, loss)]),
            drift=_drift(row, logps.detach()),
            check=FiniteCheck.of(row, output.losses.detach()),
        )
        return output.losses.sum(), collected

    def see_routes(self, rows: Sequence[RowBatch], reference: ReferenceRoutes | None, source: RowSource) -> None:
        """Takes from rows that have passed the policy what its routers wrote: whose experts are the reference's, and
        the routers' own losses.
        """
        if reference is not None:
            self.agreeing = _added(self.agreeing, count_agreeing(rows, reference, source))
        self.router_losses = _added(self.router_losses, router_losses(self.engine, rows))

    def reduce(self, collected: Sequence[RowMetrics]) -> dict[str, float]:
        """Means by name and `reference/drift` (largest difference of policy and reference), equal on all ranks; within
        a step which rank is the slowest, how evenly experts are loaded, and how many are the reference's.

        One collective and one copy to the host, which also tell all ranks whether one of them was asked to stop. A
        mean without items is absent.
        """
        sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=self.engine.device)
        # Drifts are told apart by data-parallel rank, since a sum cannot take a maximum.
        drifts = torch.zeros(self.engine.data_parallel_size, dtype=torch.float64, device=self.engine.device)
        if self.engine.is_metrics_rank:
            mine = drifts[self.engine.data_parallel_rank]
            for row in collected:
                sums += row.sums
                mine.copy_(torch.maximum(mine, row.drift))
        # Times too: each rank's stands at its own place.
        own_seconds = self.clock.seconds()
        seconds = [] if own_seconds is None else [0.0] * dist.get_world_size()
        if own_seconds is not None:
            seconds[dist.get_rank()] = own_seconds
        of_experts = take_loads(self.engine), self.agreeing, self.router_losses
        self.agreeing = self.router_losses = None
        totals = Totals.over_all_ranks(sums, drifts, seconds, self.stop.votes(), *of_experts)
        self.stop.count(totals.stop_votes)
        pairs = zip(totals.sums[::2], totals.sums[1::2], strict=True)
        means = {name: total / count for name, (total, count) in zip(self.names, pairs, strict=True) if count}
        if self.loss.needs_reference:
            means[DRIFT] = max(totals.drifts)
        means |= straggler_metrics(totals.seconds) | load_metrics(totals.loads, self.engine.architecture)
        means |= router_loss_metrics(totals.router_losses, self.engine.architecture)
        return means | agreement_metrics(totals.agreeing)

    def _sums(self, output: LossOutput) -> Tensor:
        """(sum, count) of each of the loss's metrics, fp64 [metrics, 2]."""
        metrics = {LOSS: output.losses.detach(), **output.metrics}
        sums = torch.stack([metrics[name].double().sum() for name in self.loss_names])
        counts = np.array([metrics[name].numel() for name in self.loss_names], dtype=np.float64)
        return torch.stack((sums, to_device(counts, sums.device)), dim=1)

    def _source_sums(
        self, row: RowBatch, batch: CompletionBatch, loss: Callable[[CompletionBatch], LossOutput]
    ) -> list[Tensor]:
        source = self.dataset.source_index[row.row.example_ids]
        found = []
        for index in range(len(self.sources)):
            kept = source == index
            if kept.any():
                found.append(self._sums(loss(only_examples(batch, row.row.sequence_example, kept))))
            else:
                found.append(torch.zeros(len(self.loss_names), 2, dtype=torch.float64, device=batch.logps.device))
        return found


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None or more is None else total + more


def _drift(row: RowBatch, logps: Tensor) -> Tensor:
    """Largest difference between policy and reference, fp64 scalar."""
    if row.reference_logps is None or not logps.numel():
        return torch.zeros((), dtype=torch.float64, device=logps.device)
    return (logps - row.reference_logps).abs().max().double()


def only_examples(
    batch: CompletionBatch, sequence_example: NDArray[np.int64], kept: NDArray[np.bool_]
) -> CompletionBatch:
    """The batch without gradients and with the kept examples only.

    sequence_example [sequences] (the batch's `example`, on the host: no wait for the device), kept [examples].
    """
    chosen = np.flatnonzero(kept[sequence_example])
    renumbered = (np.cumsum(kept) - 1)[sequence_example[chosen]]
    device = batch.logps.device
    index = to_device(chosen, device)
    reference = batch.reference_logps
    return CompletionBatch(
        logps=batch.logps.detach()[index],
        reference_logps=None if reference is None else reference[index],
        lengths=batch.lengths[index],
        example=to_device(renumbered, device),
        preferred=batch.preferred[index],
        num_examples=int(kept.sum()),
    )
