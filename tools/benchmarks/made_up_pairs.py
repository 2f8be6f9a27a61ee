"""Pairs of random tokens with lengths like those of known data sets; any number of them costs no memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpop_base.errors import UserError
from megatron_dpop.data.examples import Lengths, TokenizedExample

Draw = np.random.Generator
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairLengths:
    """All int64 [pairs]. A rejected answer agrees with the chosen one up to `common`."""

    prompt: Ints
    chosen: Ints
    rejected: Ints
    common: Ints


def metamath_like(draw: Draw, pairs: int) -> PairLengths:
    """A question, a worked answer, and the same answer with one number changed anywhere in it.

    Log-normal lengths with medians of 90 (prompt) and 190 tokens (answer).
    """
    prompt = np.clip(draw.lognormal(np.log(90), 0.45, pairs), 20, 600).astype(np.int64)
    chosen = np.clip(draw.lognormal(np.log(190), 0.5, pairs), 20, 800).astype(np.int64)
    rejected = chosen + draw.integers(-2, 3, pairs)
    common = (draw.random(pairs) * 0.95 * np.minimum(chosen, rejected)).astype(np.int64)
    return PairLengths(prompt, chosen, rejected, common)


def ultrafeedback_like(draw: Draw, pairs: int) -> PairLengths:
    """A prompt of 200 tokens and two answers of 300 that have nothing in common; 15% either way."""

    def about(tokens: int) -> Ints:
        return np.clip(draw.normal(tokens, 0.15 * tokens, pairs), 0.5 * tokens, 1.5 * tokens).astype(np.int64)

    return PairLengths(about(200), about(300), about(300), np.zeros(pairs, dtype=np.int64))


def fixed(prompt: int, completion: int, common: int) -> Callable[[Draw, int], PairLengths]:
    """Pairs of one size, for sweeps over it."""

    def lengths(_: Draw, pairs: int) -> PairLengths:
        sizes = (prompt, completion, completion, common)
        return PairLengths(*(np.full(pairs, size, dtype=np.int64) for size in sizes))

    return lengths


KINDS: dict[str, Callable[[Draw, int], PairLengths]] = {
    "metamath-like": metamath_like,
    "ultrafeedback-like": ultrafeedback_like,
}


FIXED = "fixed:"


def lengths_of(kind: str) -> Callable[[Draw, int], PairLengths] | None:
    """Returns lengths of a name in KINDS, or of "fixed:PROMPT,COMPLETION,COMMON" (tokens); None for anything else."""
    if kind.startswith(FIXED):
        try:
            prompt, completion, common = (int(word) for word in kind.removeprefix(FIXED).split(","))
        except ValueError:
            raise UserError(f"{kind}: give three numbers of tokens, as in {FIXED}90,190,100") from None
        return fixed(prompt, completion, common)
    return KINDS.get(kind)


class MadeUpPairs:
    """What the trainer asks of a data set (`megatron_dpop.engine.batches.Examples`); tokens are drawn when read."""

    source_names = ("made up",)
    sources = ()  # no file whose change a resumed run would have to notice

    def __init__(self, lengths: Callable[[Draw, int], PairLengths], pairs: int, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._lengths = lengths(np.random.default_rng(0), pairs)
        self.source_index = np.zeros(pairs, dtype=np.int64)
        self.fingerprint = f"{pairs} made-up pairs"

    def __len__(self) -> int:
        return len(self._lengths.prompt)

    def __getitem__(self, index: int) -> TokenizedExample:
        draw = np.random.default_rng((1, index))

        def tokens(count: int) -> NDArray[np.int32]:
            return draw.integers(0, self.vocab_size, count, dtype=np.int32)

        common = int(self._lengths.common[index])
        chosen = tokens(int(self._lengths.chosen[index]))
        rejected = tokens(int(self._lengths.rejected[index]))
        rejected[:common] = chosen[:common]
        if common < min(len(chosen), len(rejected)):
            rejected[common] = (chosen[common] + 1) % self.vocab_size
        prompt = tokens(int(self._lengths.prompt[index]))
        return TokenizedExample(prompt, (chosen, rejected), (True, False), "made up", common)

    def lengths(self) -> Lengths:
        found = self._lengths
        return Lengths(
            found.prompt.astype(np.int32),
            np.stack((found.chosen, found.rejected), axis=1).astype(np.int32),
            found.common.astype(np.int32),
        )
