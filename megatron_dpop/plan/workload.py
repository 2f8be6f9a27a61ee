"""What a step trains on, in means per example: enough for every formula, whatever the data."""

import math
from dataclasses import dataclass

from megatron_dpop.config.layout import row_multiple
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.rows.packing import TARGET_FILL_PERCENT, step_row_tokens
from megatron_dpop.rows.shapes import ExampleShapes


@dataclass(frozen=True)
class ExampleCost:
    """The cost of a mean example."""

    tokens: float  # in a row
    scores: float  # positions through the output layer
    attended: float  # (query, key) pairs of its attention

    @staticmethod
    def of(shapes: ExampleShapes) -> "ExampleCost":
        return ExampleCost(float(shapes.row_tokens.mean()), float(shapes.scores.mean()), float(shapes.attended.mean()))


@dataclass(frozen=True)
class ExampleSize:
    """Tokens of a prompt, of each of its completions, and of what these begin with in common."""

    prompt: int
    completion: int
    common: int
    completions: int = 2


@dataclass(frozen=True)
class MeanRow:
    """One micro-batch, means."""

    tokens: int  # the row's length, padding included
    scores: float
    attended: float
    branch_keys: float  # that branches attend to: each its own and its trunk's
    trunk_keys: float  # that tokens attend to which are not in a branch
    masked: float  # (query, key) pairs of branches


@dataclass(frozen=True)
class Workload:
    """Examples (pairs, mostly) of a step, and how they are packed."""

    examples: int  # of a step
    capacity_tokens: int  # `data.row_tokens`
    packed: ExampleCost  # as rows hold it
    unshared: ExampleCost  # if every completion came with its own copy of the prompt and the common prefix

    @property
    def shares(self) -> bool:
        return self.packed.tokens < self.unshared.tokens

    def rows(self, choice: LayoutChoice) -> int:
        """Rows of each data-parallel rank in a step (`megatron_dpop.rows.packing.pack`)."""
        # An interleaved pipeline takes them in groups of the number of stages.
        multiple = choice.data * (choice.pipeline if choice.virtual_pipeline else 1)
        rows = max(
            1, math.ceil(100 * self.examples * self.packed.tokens / (TARGET_FILL_PERCENT * self.capacity_tokens))
        )
        return -(-rows // multiple) * multiple // choice.data

    def row(self, choice: LayoutChoice) -> MeanRow:
        """The mean row. Packing is even to a fraction of a percent, so it is also the fullest."""
        examples = self.examples / (self.rows(choice) * choice.data)
        filled = math.ceil(max(examples, 1.0) * self.packed.tokens)
        multiple = self.capacity_tokens if choice.overlap_tensor else row_multiple(choice, fp8=choice.fp8)
        length = step_row_tokens([filled], capacity_tokens=self.capacity_tokens, multiple=multiple)
        # Exact for two completions. Alone, each has its own copy of the trunk and looks at its triangle once more.
        trunk = self.unshared.tokens - self.packed.tokens
        branch_attended = max(0.0, 2 * self.packed.attended - self.unshared.attended)
        return MeanRow(
            tokens=length,
            scores=examples * self.packed.scores,
            attended=examples * self.packed.attended,
            branch_keys=examples * self.unshared.tokens if self.shares else 0.0,
            trunk_keys=examples * (trunk if self.shares else self.packed.tokens),
            masked=examples * branch_attended if self.shares else 0.0,
        )
