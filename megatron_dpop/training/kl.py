"""KTO's reference point: a step's estimate of the divergence between policy and reference, and what it is made from."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_dpop.data.examples import Lengths, TokenizedExample
from megatron_dpop.engine.batches import Examples, RowBatch, StepData
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.engine.non_finite import FiniteCheck, raise_non_finite
from megatron_dpop.losses.kto import kl_estimate


def step_kl(data: StepData, step: int, *, when: str) -> Tensor | None:
    """The KL term of a step, the same scalar on every rank, from a forward-only pass over its mismatched completions.

    None for losses without one. Raises NonFiniteError on all ranks, its message starting with `when`. Every rank must
    call it.
    """
    if data.mismatched is None:
        return None
    engine = data.source.engine
    collected = run_rows(engine, data.mismatched.rows(step), _log_ratios, forward_only=True)
    counted = [row.ratios for row in collected] if engine.is_metrics_rank else []
    kl = kl_estimate(torch.cat([torch.zeros(0, device=engine.device), *counted]), dist.group.WORLD)
    if not torch.isfinite(kl):
        what = "KTO's KL estimate, from prompts with other prompts' completions, is not a finite number"
        raise_non_finite(engine, collected, data.source.dataset, f"{when}: {what}")
    return kl


@dataclass(frozen=True)
class RowRatios:
    ratios: Tensor  # fp32 [sequences], policy minus reference
    check: FiniteCheck


def _log_ratios(row: RowBatch, logps: Tensor) -> tuple[Tensor, RowRatios]:
    ratios = (logps - row.reference_tensor()).detach()
    return logps.sum(), RowRatios(ratios, FiniteCheck.of(row, ratios))


class MismatchedDataset:
    """Example i is prompt i with the completion of another example, of a dataset with one completion an example.

    Who lends to whom is drawn once for the whole dataset and not within a step: so a mismatched example, and its
    reference log-probability, is a function of the dataset alone, whatever the batch, epoch or layout. It is a random
    cycle and not the next example in the file, which may well answer the same prompt. A borrowed completion is cut
    where its example would be longer than the dataset's longest.
    """

    def __init__(self, dataset: Examples) -> None:
        self.dataset = dataset
        self.fingerprint = hashlib.sha256(f"mismatched {dataset.fingerprint}".encode()).hexdigest()
        self.source_names = dataset.source_names
        self.source_index = dataset.source_index
        cycle = np.random.default_rng(0).permutation(len(dataset))
        self._lender = np.empty(len(dataset), dtype=np.int64)
        self._lender[cycle] = np.roll(cycle, -1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> TokenizedExample:
        own, lender = self.dataset[index], self.dataset[int(self._lender[index])]
        tokens = int(self._lengths.completion_tokens[index, 0])
        return TokenizedExample(own.prompt, (lender.completions[0][:tokens],), lender.preferred, own.source, 0)

    def lengths(self) -> Lengths:
        return self._lengths

    @cached_property
    def _lengths(self) -> Lengths:
        lengths = self.dataset.lengths()
        assert lengths.completion_tokens.shape[1] == 1, "mismatching needs one completion an example"
        longest = (lengths.prompt_tokens + lengths.completion_tokens[:, 0]).max()
        room = (longest - lengths.prompt_tokens)[:, None]
        return Lengths(
            lengths.prompt_tokens,
            np.minimum(lengths.completion_tokens[self._lender], room),
            lengths.common_prefix_tokens,
        )
