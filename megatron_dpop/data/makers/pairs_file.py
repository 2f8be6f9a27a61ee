"""Made pairs on disk: parquet with a datasheet beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dpop_base.files import replacing, write_json

from ..edit_distance import normalised_edit_distance, words_of

DATASHEET_VERSION = 1


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str


@dataclass
class Made:
    """A maker's result: pairs of each split, and what made it skip examples."""

    splits: dict[str, list[Pair]]
    skipped: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)


def write_made(folder: Path, made: Made, *, source: str, seed: int, version: str) -> dict[str, Any]:
    """Writes `<split>.parquet` of each split that has pairs, and last `datasheet.json`, whose content is returned."""
    for split, pairs in made.splits.items():
        if pairs:
            _write(folder / f"{split}.parquet", pairs)
        else:
            (folder / f"{split}.parquet").unlink(missing_ok=True)  # of an earlier run with another split
    sheet = {
        "datasheet_version": DATASHEET_VERSION,
        "source": source,
        "source_version": version,
        "seed": seed,
        "pairs": {split: len(pairs) for split, pairs in made.splits.items()},
        "skipped": dict(made.skipped.most_common()),
        "normalised_edit_distance": {split: edit_distances(pairs) for split, pairs in made.splits.items()},
        **made.facts,
    }
    write_json(folder / "datasheet.json", sheet)
    return sheet


def _write(path: Path, pairs: Sequence[Pair]) -> None:
    columns = {name: [getattr(pair, name) for pair in pairs] for name in ("prompt", "chosen", "rejected")}
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), temporary, compression="zstd")


def edit_distances(pairs: Sequence[Pair]) -> dict[str, float]:
    """Mean and percentiles of the normalised edit distance in characters, and its mean in words; shares of one."""
    if not pairs:
        return {}
    values = np.array([normalised_edit_distance(pair.chosen, pair.rejected) for pair in pairs])
    words = np.mean([normalised_edit_distance(words_of(pair.chosen), words_of(pair.rejected)) for pair in pairs])
    return {
        "mean": round(float(values.mean()), 5),
        **{f"p{point}": round(float(np.percentile(values, point)), 5) for point in (5, 50, 95)},
        "share_under_0.1": round(float((values < 0.1).mean()), 5),
        "mean_words": round(float(words), 5),
    }


def datasheet_lines(sheet: Mapping[str, Any]) -> list[str]:
    """The datasheet in words."""
    lines = [f"{split}: {count} pairs" for split, count in sheet["pairs"].items()]
    lines += [f"skipped {count}: {reason}" for reason, count in sheet["skipped"].items()]
    for split, found in sheet.get("found_in", {}).items():
        lines.append(f"{split}: " + ", ".join(f"{count} by {tier}" for tier, count in found.items()))
    for split, distance in sheet["normalised_edit_distance"].items():
        if distance:
            lines.append(
                f"{split}: normalised edit distance {distance['mean']:.1%} in characters, "
                f"{distance['mean_words']:.1%} in words (means)"
            )
    return lines
