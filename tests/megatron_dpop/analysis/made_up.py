"""An analysis with numbers of known shape, for its page: no model is read."""

from collections.abc import Sequence

import numpy as np

from megatron_dpop.analysis.analyze import Analysis, ModelResult
from megatron_dpop.analysis.displacement import Displacement
from megatron_dpop.analysis.spans import SIDES, PairLogps, PairTokens, share_below, summarise
from tests.tiny import WORDS

FIRST_WORD = 5  # of the tiny tokenizer


def analysis(losses: Sequence[str | None] = ("dpo", "dpop"), *, pairs: int = 6, prompt_tokens: int = 20) -> Analysis:
    """A reference, and a model of each loss that is half a nat a token below it; the first prompt is long."""
    draw = np.random.default_rng(0)

    def words(count: int) -> np.ndarray:
        return draw.integers(FIRST_WORD, FIRST_WORD + WORDS, count).astype(np.int32)

    tokens = []
    for at in range(pairs):
        common = words(4 + at)
        both = [np.concatenate([common, words(9)]) for _ in range(2)]
        tokens.append(PairTokens(words(prompt_tokens if at else 15 * prompt_tokens), both[0], both[1], len(common)))
    base = [_logps(draw, pair, 1.0) for pair in tokens]
    models = [_result("reference", None, base, None, tokens)]
    for loss in losses:
        lower = [PairLogps(one.chosen - np.float32(0.5), one.rejected - np.float32(0.5)) for one in base]
        models.append(_result(loss or "model", loss, lower, base, tokens))
    return Analysis(tokens, models, True, Displacement(draw.normal(size=pairs), draw.normal(size=pairs)))


def _logps(draw: np.random.Generator, pair: PairTokens, scale: float) -> PairLogps:
    chosen, rejected = (-draw.exponential(scale, len(side)).astype(np.float32) for side in (pair.chosen, pair.rejected))
    return PairLogps(chosen, rejected)


def _result(
    name: str,
    loss: str | None,
    logps: Sequence[PairLogps],
    base: Sequence[PairLogps] | None,
    pairs: Sequence[PairTokens],
) -> ModelResult:
    common = [pair.common for pair in pairs]
    by_side = {side: [getattr(one, side) for one in logps] for side in SIDES}
    fell = None if base is None else share_below(by_side["chosen"], [one.chosen for one in base], common)
    sides = {side: summarise(values, common) for side, values in by_side.items()}
    return ModelResult(name, f"models/{name}", loss, logps, sides, fell)
