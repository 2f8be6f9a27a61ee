"""`data inspect --model`: a file's pairs, the layout that scores them, and their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import torch.distributed as dist

from checkpoint_convert.locate import assets_folder
from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.analysis.displacement import displacement
from megatron_dpop.analysis.request import check_config
from megatron_dpop.analysis.token_logps import load_weights
from megatron_dpop.config import Config
from megatron_dpop.config.load import config_from_dict, override
from megatron_dpop.data.examples import SourceExamples, TokenizedDataset
from megatron_dpop.data.files.rows import Location
from megatron_dpop.data.inspection.scores import PairScore, read_pairs, record_key
from megatron_dpop.data.storage import SCHEMA, StoredExamples, record_batch
from megatron_dpop.data.tokenise import TokenizedRecord, tokenise
from megatron_dpop.data.tokenizer import TextTokenizer
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.engine.engine import build_model_engine
from megatron_dpop.tracking.console import Console
from megatron_dpop.training.inputs import read_model
from megatron_dpop.training.validation import validation_steps

MAX_TOKENS = 2048
LEAST_ROW_TOKENS = 8192
_BATCH = 512


@dataclass(frozen=True)
class ScoreRequest:
    """A model, and the config that says how it is laid out."""

    model: Path
    config: Config
    architecture: Architecture

    @property
    def tokenizer(self) -> Path:
        return assets_folder(self.model)


@dataclass(frozen=True)
class Scored:
    scores: Sequence[PairScore]
    too_long: int  # pairs without scores
    max_tokens: int


def read_score_request(model: str, source: str, *, max_tokens: int | None, overrides: Sequence[str]) -> ScoreRequest:
    """Raises UserError on what is no model, or a layout that does not fit it."""
    folder, architecture = read_model(model, key="--model")
    limit = max_tokens or min(MAX_TOKENS, architecture.max_position_embeddings)
    if limit > architecture.max_position_embeddings:
        raise UserError(f"--max-tokens: {model} knows {architecture.max_position_embeddings} positions; give no more")
    row_tokens = max(LEAST_ROW_TOKENS, -(-2 * limit // LEAST_ROW_TOKENS) * LEAST_ROW_TOKENS)  # two answers, not shared
    tree: dict[str, Any] = {
        "model": {"path": str(folder)},
        "data": {"train": source, "max_tokens": limit, "row_tokens": row_tokens},
        "parallel": {},
        "loss": {"name": "dpo"},
    }
    override(tree, overrides)
    config = config_from_dict(tree, origin="data inspect")
    check_config(config, architecture)
    return ScoreRequest(folder, config, architecture)


def score_pairs(
    request: ScoreRequest,
    source: Location,
    columns: Mapping[str, str],
    tokenizer: TextTokenizer,
    device: torch.device,
) -> Scored:
    """Every rank calls it, and has the scores. UserError where the source holds no pairs, or none that fits."""
    limit = request.config.data.max_tokens
    places: list[tuple[str, str]] = []  # (where, key) of those that have tokens
    tokens: list[TokenizedRecord] = []
    too_long = 0
    for batch in batched(read_pairs(source, columns, plain=tokenizer.is_plain), _BATCH):
        records = [record for _, record in batch]
        found = tokenise(records, tokenizer, max_tokens=limit, too_long="drop")
        for (where, record), encoded in zip(batch, found, strict=True):
            if isinstance(encoded, TokenizedRecord):
                places.append((where, record_key(record).hex()))
                tokens.append(encoded)
            too_long += encoded is None
    if not tokens:
        raise UserError(f"{source}: no pair of at most {limit} tokens is there to score; raise --max-tokens")
    dataset = _dataset(source, tokens)
    engine = build_model_engine(request.config, request.architecture, device)
    load_weights(engine, request.model)
    rows = RowSource(request.config, dataset, engine, shuffle=False)
    with Console(silent=dist.get_rank() != 0).progress("scoring", validation_steps(rows)) as bar:
        found_scores = displacement(engine, rows, bar.update)
    scores = [
        PairScore(where, key, ches, per_token, *map(len, entry.completions))
        for (where, key), entry, ches, per_token in zip(
            places, tokens, found_scores.ches.tolist(), found_scores.ches_per_token.tolist(), strict=True
        )
    ]
    return Scored(scores, too_long, limit)


def _dataset(source: Location, tokens: Sequence[TokenizedRecord]) -> TokenizedDataset:
    """The pairs in their order, in this process's memory."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batched(tokens, _BATCH):
            writer.write_batch(record_batch(batch))
    stored = StoredExamples(sink.getvalue(), digest="")
    order = np.stack((np.zeros(len(tokens), np.int64), np.arange(len(tokens))), axis=1)
    return TokenizedDataset(
        [SourceExamples(source.stem, str(source), "pairs", stored, "")], order, has_single_labels=False
    )
