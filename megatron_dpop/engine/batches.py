"""Rows as tensors on the device, with the reference's log-probabilities beside them."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.config import Config
from megatron_dpop.config.layout import row_multiple
from megatron_dpop.data.examples import Lengths, TokenizedExample
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.models.layout import RowExamples, RowLayout, RowRoutes
from megatron_dpop.models.scoring import Scores
from megatron_dpop.plan.flops import forward_flops
from megatron_dpop.rows.context import RowShard, row_shard
from megatron_dpop.rows.routed import routed_every, routed_tokens
from megatron_dpop.rows.row import ALL_ALIKE, Ints, Row, TokenWeights, build_row
from megatron_dpop.rows.schedule import StepPlan, plan_rows, step_examples
from megatron_dpop.rows.shapes import ExampleShapes, example_shapes
from megatron_dpop.rows.shares import seen_by_routers, token_shares
from megatron_dpop.runtime.devices import to_device

ReferenceLogps = NDArray[np.float32]  # [examples, completions], NaN where an example has fewer
ReferenceRoutes = NDArray[np.int32]  # [examples looked at, completions, layers], -1 where unknown (`training.routes`)


class Examples(Protocol):
    """What the trainer asks of a dataset (`megatron_dpop.data.examples.TokenizedDataset`)."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def source_names(self) -> tuple[str, ...]: ...
    @property
    def source_index(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> TokenizedExample: ...
    def lengths(self) -> Lengths: ...


@dataclass(frozen=True)
class RowBatch:
    """This rank's part of one row, ready for the model: a micro-batch of the schedule."""

    tokens: Tensor  # int64 [1, tokens / cp]
    layout: RowLayout
    scores: Scores
    sequence_lengths: Tensor  # int64 [sequences], scored tokens
    sequence_example: Tensor  # int64 [sequences]
    sequence_preferred: Tensor  # bool [sequences]
    reference_logps: Tensor | None  # fp32 [sequences]
    row: Row
    routed: Ints | None = None  # [tokens], index into the sequences: whose token each of `layout.routes` is

    @property
    def row_tokens(self) -> int:
        """Length of the whole row."""
        return len(self.row.tokens)

    def reference_tensor(self) -> Tensor:
        assert self.reference_logps is not None, "the row came without reference log-probabilities"
        return self.reference_logps

    def completions(self, logps: Tensor) -> CompletionBatch:
        """The loss's input, from the row's summed log-probabilities, fp32 [sequences]."""
        return CompletionBatch(
            logps=logps,
            reference_logps=self.reference_logps,
            lengths=self.sequence_lengths,
            example=self.sequence_example,
            preferred=self.sequence_preferred,
            num_examples=len(self.row.example_ids),
        )


class RowSource:
    """A dataset seen as the rows of steps: what each data-parallel rank trains on at a step."""

    def __init__(
        self,
        config: Config,
        dataset: Examples,
        engine: ModelEngine,
        *,
        shuffle: bool,
        weights: TokenWeights = ALL_ALIKE,
    ) -> None:
        """The rows that a config makes of a dataset; `shuffle`: for training, by the config's seed."""
        self.engine = engine
        self.capacity_tokens = config.data.row_tokens
        self.share_prefix = config.data.share_prefix
        self.batch = config.train.global_batch_pairs
        self.seed = config.train.seed
        self.shuffle = shuffle
        self.weights = weights
        fp8 = engine.config.fp8 is not None
        self.multiple = self.capacity_tokens if engine.equal_rows else row_multiple(engine.layout, fp8=fp8)
        self._look_at(dataset)

    def _look_at(self, dataset: Examples) -> None:
        """Sets the dataset, and what its lengths come to under these settings."""
        self.dataset = dataset
        self.shapes = dataset_shapes(dataset, share_prefix=self.share_prefix)
        self.unshared = dataset_shapes(dataset, share_prefix=False)
        self.flops = forward_flops(
            self.engine.architecture,
            tokens=self.shapes.row_tokens,
            scores=self.shapes.scores,
            attended=self.shapes.attended,
        )

    def over(self, dataset: Examples) -> "RowSource":
        """The rows that another dataset has under the same settings."""
        other = copy(self)
        other._look_at(dataset)
        return other

    def __len__(self) -> int:
        return len(self.dataset)

    def examples_of_step(self, step: int) -> list[int]:
        """Dataset indices; without shuffling, consecutive ones, the last step's fewer."""
        if self.shuffle:
            return step_examples(seed=self.seed, step=step, batch=self.batch, examples=len(self))
        return list(range(step * self.batch, min((step + 1) * self.batch, len(self))))

    def plan(self, step: int) -> StepPlan:
        return plan_rows(
            self.examples_of_step(step),
            self.shapes.row_tokens,
            self.flops,
            capacity_tokens=self.capacity_tokens,
            multiple=self.multiple,
            data_parallel=self.engine.data_parallel_size,
            rows_multiple=self.engine.micro_batches_multiple,
        )

    def rows(self, step: int, reference: ReferenceLogps | None) -> list[RowBatch]:
        """This rank's rows of a step, all of one length."""
        plan = self.plan(step)
        mine = plan.by_rank[self.engine.data_parallel_rank]
        examples = len(self.examples_of_step(step))
        return [self._batch(indices, plan.row_tokens, reference, of_step=examples) for indices in mine]

    def _batch(
        self, indices: Sequence[int], row_tokens: int, reference: ReferenceLogps | None, *, of_step: int
    ) -> RowBatch:
        examples = [self.dataset[index] for index in indices]
        row = build_row(examples, indices, row_tokens=row_tokens, share_prefix=self.share_prefix, weights=self.weights)
        return row_batch(row, reference, self.engine, every=routed_every(len(self)), of_step=of_step)


@dataclass(frozen=True)
class StepData:
    """All that a loss is computed from: examples, what the reference says of them, and KTO's mismatched examples."""

    source: RowSource
    reference: ReferenceLogps | None = None
    mismatched: "StepData | None" = None
    routes: ReferenceRoutes | None = None

    def rows(self, step: int) -> list[RowBatch]:
        return self.source.rows(step, self.reference)


def dataset_shapes(dataset: Examples, *, share_prefix: bool) -> ExampleShapes:
    lengths = dataset.lengths()
    return example_shapes(
        lengths.prompt_tokens,
        lengths.completion_tokens,
        lengths.common_prefix_tokens,
        share_prefix=share_prefix,
    )


def row_batch(
    row: Row, reference: ReferenceLogps | None, engine: ModelEngine, *, every: int = 1, of_step: int = 1
) -> RowBatch:
    """The row on this rank's device.

    Of models with experts, `every` says of which examples routers write down the experts (`megatron_dpop.rows.routed`),
    and `of_step` over how many examples their own losses are means.
    """

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return to_device(array, engine.device)

    reference_logps = None
    if reference is not None:
        wanted = reference[row.example_ids]
        reference_logps = tensor(wanted[~np.isnan(wanted)])
        assert len(reference_logps) == len(row.sequence_lengths), "the reference lacks some of the row's examples"
    shard = row_shard(row, engine.context_parallel_rank, engine.context_parallel_size)
    batch = RowBatch(
        tokens=tensor(shard.tokens)[None],
        layout=RowLayout(positions=tensor(shard.positions), attention=shard.attention),
        scores=Scores(
            positions=tensor(shard.score_positions),
            targets=tensor(shard.score_targets),
            member_score=tensor(shard.member_score),
            sequence_lengths=tensor(shard.sequence_lengths),
            member_place=tensor(shard.member_place),
            row_members=len(row.member_score),
            vocab_size=engine.architecture.vocab_size,
            tensor_group=engine.groups.tp,
            context_group=engine.groups.cp,
            fused=engine.config.fused_kernels,
            member_weight=None if shard.member_weight is None else tensor(shard.member_weight),
        ),
        sequence_lengths=tensor(row.sequence_lengths),
        sequence_example=tensor(row.sequence_example),
        sequence_preferred=tensor(row.sequence_preferred),
        reference_logps=reference_logps,
        row=row,
    )
    if engine.architecture.experts is None:
        return batch
    return _with_routing(batch, shard, engine, every=every, of_step=of_step)


def _with_routing(batch: RowBatch, shard: RowShard, engine: ModelEngine, *, every: int, of_step: int) -> RowBatch:
    """The row with what routers take from it, and write into it; `shard`: this rank's of it."""
    row, device = batch.row, engine.device
    part, parts = (engine.groups.tp.rank(), engine.groups.tp.size()) if engine.config.sequence_parallel else (0, 1)
    routed, places = routed_tokens(row, shard, every=every, part=part, parts=parts)
    layout = replace(batch.layout, routes=RowRoutes(to_device(places, device)))
    if engine.config.balance_loss or engine.config.z_loss:
        seen = seen_by_routers(
            len(row.tokens),
            rank=engine.context_parallel_rank,
            ranks=engine.context_parallel_size,
            part=part,
            parts=parts,
        )
        example, share = token_shares(row)
        of_tokens = to_device(example[seen], device), to_device(share[seen], device)
        layout = replace(layout, examples=RowExamples(*of_tokens, examples=len(row.example_ids), of_step=of_step))
    return replace(batch, layout=layout, routed=routed)
