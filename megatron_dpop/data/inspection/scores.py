"""Scores that a model gave pairs: a file with a line a pair, found again by what the pair says."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dpop_base.errors import UserError
from dpop_base.files import replacing

from ..files.rows import Location
from ..formats import Notes
from ..kinds import as_kind, can_be
from ..reading import open_source, records_of
from ..records import BadRowError, Record
from .report import prompt_hash


@dataclass(frozen=True)
class PairScore:
    """One pair's line. `key` tells pairs apart by their texts; `where` is for people."""

    where: str
    key: str
    ches: float
    ches_per_token: float
    chosen_tokens: int
    rejected_tokens: int


def record_key(record: Record) -> bytes:
    """16 bytes that tell records apart by prompt and completions."""
    texts = repr(record.completions).encode("utf-8", "replace")
    return hashlib.sha256(prompt_hash(record.prompt) + texts).digest()[:16]


def read_pairs(source: Location, columns: Mapping[str, str], *, plain: bool) -> Iterator[tuple[str, Record]]:
    """(where, pair) of every usable row; what is wrong with the others is for the report to say."""
    reading = open_source(source, columns)
    if not can_be(reading.layout.form.kind, "pair"):
        raise UserError(f"{source}: holds {reading.layout.form.name}, of which no pairs can be made")
    notes = Notes(plain=plain, media=reading.layout.media)
    for where, values in reading.entries():
        try:
            records = records_of(reading.layout, values, notes)
        except BadRowError:
            continue
        for record in records:
            pairs = as_kind(record, "pair")
            if not isinstance(pairs, str):
                yield from ((where, pair) for pair in pairs)


def write_scores(path: Path, scores: Iterable[PairScore]) -> None:
    """Writes JSON Lines; the file appears when it is whole."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for score in scores:
            file.write(json.dumps(asdict(score), ensure_ascii=False) + "\n")


def read_scores(path: Path) -> Mapping[bytes, Mapping[str, float]]:
    """The numbers of each pair by its key. UserError names the line that is none."""
    found = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                key = bytes.fromhex(values["key"])
                numbers = {name: float(values[name]) for name in ("ches", "ches_per_token")}
            except (ValueError, TypeError, KeyError, RecursionError):
                numbers = {}
            if not numbers or not all(map(math.isfinite, numbers.values())):
                raise UserError(
                    f"{path}: line {number} is no pair's scores; give the file that `data inspect --scores` wrote"
                )
            found[key] = numbers
    return found
