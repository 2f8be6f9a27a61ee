"""Examples of one size and of random tokens, for a measurement that needs no data."""

import numpy as np
from numpy.typing import NDArray

from megatron_dpop.data.examples import Lengths, TokenizedExample
from megatron_dpop.plan.workload import ExampleSize


def typical_size(lengths: Lengths) -> ExampleSize:
    """Returns the means over a dataset's examples, in whole tokens."""
    present = lengths.completion_tokens > 0
    completions = max(1, round(float(present.sum(axis=1).mean())))
    completion = max(1, round(float(lengths.completion_tokens[present].mean())))
    common = min(completion - 1, round(float(lengths.common_prefix_tokens.mean())))
    return ExampleSize(max(1, round(float(lengths.prompt_tokens.mean()))), completion, common, completions)


class AlikePairs:
    """What a step asks of a dataset (`megatron_dpop.engine.batches.Examples`)."""

    source_names = ("made up",)
    fingerprint = "made up"

    def __init__(self, size: ExampleSize, count: int, *, vocab_size: int) -> None:
        self.size, self.vocab_size = size, vocab_size
        self.source_index = np.zeros(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source_index)

    def __getitem__(self, index: int) -> TokenizedExample:
        draw = np.random.default_rng(index)
        size = self.size

        def tokens(count: int) -> NDArray[np.int32]:
            return draw.integers(0, self.vocab_size, count, dtype=np.int32)

        shared = tokens(size.common)
        answers = [np.concatenate((shared, tokens(size.completion - size.common))) for _ in range(size.completions)]
        preferred = tuple(at == 0 for at in range(size.completions))
        return TokenizedExample(tokens(size.prompt), tuple(answers), preferred, "made up", self._common)

    @property
    def _common(self) -> int:
        return self.size.common if self.size.completions > 1 else 0

    def lengths(self) -> Lengths:
        size, count = self.size, len(self)
        return Lengths(
            np.full(count, size.prompt, dtype=np.int32),
            np.full((count, size.completions), size.completion, dtype=np.int32),
            np.full(count, self._common, dtype=np.int32),
        )
