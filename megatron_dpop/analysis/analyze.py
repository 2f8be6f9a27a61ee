"""Turns a request into results: each model in turn over the same rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_dpop.analysis.displacement import Displacement, displacement, rank_correlation
from megatron_dpop.analysis.request import Model, Request
from megatron_dpop.analysis.spans import (
    OFFSETS,
    SIDES,
    SPANS,
    Mean,
    PairLogps,
    PairTokens,
    SideSummary,
    share_below,
    summarise,
)
from megatron_dpop.analysis.token_logps import load_weights, token_logps
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.engine.engine import build_model_engine
from megatron_dpop.tracking.console import Console
from megatron_dpop.training.validation import validation_steps


@dataclass(frozen=True)
class ModelResult:
    name: str
    folder: str
    loss: str | None  # that a run trained with
    logps: Sequence[PairLogps]
    sides: dict[str, SideSummary]  # by SIDES
    fell: Mean | None  # share of chosen completions below the reference after the edit; None without a reference


@dataclass(frozen=True)
class Analysis:
    pairs: Sequence[PairTokens]
    models: Sequence[ModelResult]
    has_reference: bool  # the first of them
    ches: Displacement | None = None  # of each pair, by the reference; None without one, or with nothing to compare

    def minus_reference(self, model: ModelResult, side: str, span: str) -> float | None:
        """Mean log-probability a token, less the reference's: nats. None without a reference, or such tokens."""
        ours, base = (one.sides[side].spans[span].value for one in (model, self.models[0]))
        return None if ours is None or base is None or not self.has_reference else ours - base

    def chosen_change(self, model: ModelResult) -> NDArray[np.float64]:
        """Each pair's chosen log-probability, summed over its tokens, less the reference's: nats [pairs]."""
        ours, base = (
            np.array([pair.chosen.sum(dtype=np.float64) for pair in one.logps]) for one in (model, self.models[0])
        )
        return ours - base

    def ches_correlation(self, model: ModelResult) -> dict[str, float | None] | None:
        """Rank correlation of the pairs' CHES, and of CHES a token, with what became of their chosen answers."""
        if self.ches is None or model is self.models[0]:
            return None
        change = self.chosen_change(model)
        found = {name: rank_correlation(values, change) for name, values in asdict(self.ches).items()}
        return {name: None if np.isnan(value) else value for name, value in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON takes: means in nats, `count` what they are taken over."""
        return {
            "pairs": len(self.pairs),
            "offsets": list(OFFSETS),
            "reference": self.models[0].name if self.has_reference else None,
            "models": [
                {
                    "name": model.name,
                    "folder": model.folder,
                    **{side: asdict(model.sides[side]) for side in SIDES},
                    "minus_reference": {
                        side: {span: self.minus_reference(model, side, span) for span in SPANS} for side in SIDES
                    },
                    "chosen_fell_after_edit": None if model.fell is None else model.fell.value,
                    "ches_rank_correlation": self.ches_correlation(model),
                }
                for model in self.models
            ],
        }


def analyze(request: Request, device: torch.device) -> Analysis:
    """Every rank calls it, and has the results. Raises UserError where a model's weights cannot be read."""
    engine = build_model_engine(request.config, request.architecture, device)
    source = RowSource(request.config, request.pairs, engine, shuffle=False)
    pairs = []
    for example in request.pairs:
        chosen, rejected = example.completions
        pairs.append(PairTokens(example.prompt, chosen, rejected, example.common_prefix_tokens))
    console = Console(silent=dist.get_rank() != 0)
    models: list[ModelResult] = []
    ches = None
    for model in request.models:
        load_weights(engine, model.folder)
        with console.progress(model.name, validation_steps(source)) as bar:
            logps = token_logps(engine, source, bar.update)
        if not models and request.has_reference and len(request.models) > 1:
            with console.progress(f"{model.name}, hidden states", validation_steps(source)) as bar:
                ches = displacement(engine, source, bar.update)
        base = models[0].logps if models and request.has_reference else None
        models.append(_result(model, logps, pairs, base))
    return Analysis(pairs, models, request.has_reference, ches)


def _result(
    model: Model, logps: Sequence[PairLogps], pairs: Sequence[PairTokens], base: Sequence[PairLogps] | None
) -> ModelResult:
    common = [pair.common for pair in pairs]
    by_side = {side: [getattr(pair, side) for pair in logps] for side in SIDES}
    return ModelResult(
        model.name,
        str(model.folder),
        model.loss,
        logps,
        {side: summarise(values, common) for side, values in by_side.items()},
        None if base is None else share_below(by_side["chosen"], [pair.chosen for pair in base], common),
    )
