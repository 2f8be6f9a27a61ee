"""What a data file holds, as numbers: lengths, edit distances, shared prefixes, duplicates, bad rows."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from dpop_base.choices import ExampleKind
from dpop_base.errors import UserError
from dpop_base.progress import track

from ..faults import Faults
from ..files.rows import Location
from ..formats import Format, Notes
from ..kinds import as_kind, can_be, kind_to_use, rule_text
from ..reading import open_source, records_of
from ..records import BadRowError, Prompt, Record, located, readable, text_of_content
from ..tokenise import TokenizedRecord, common_prefix_tokens, tokenise
from ..tokenizer import TextTokenizer
from .balance import Directions, length_bias
from .numbers import common_characters, is_pair, numbers_of

LOW_EDIT_DISTANCE = 0.1
SUMMED = ("edit_distance", "hamming", "token_hamming", "dropped_share")
_BATCH = 512
_EXAMPLES_SHOWN = 3


@dataclass(frozen=True)
class DataReport:
    """Shares are of one; lengths in `unit` (tokens, or characters where no tokenizer was given)."""

    path: str
    format: str
    kind: ExampleKind
    rows: int
    examples: int
    unit: str
    lengths: dict[str, dict[str, int]]  # part of the example -> percentiles
    edit_distance: dict[str, float]  # of pairs, in characters
    hamming: dict[str, float]  # of pairs, in characters
    token_hamming: dict[str, float]  # of pairs, where a tokenizer was given
    length_bias: dict[str, float]  # of pairs, in `unit`: pairs by which answer is longer, and how well that tells
    contradictory: int  # pairs of which another one prefers the other answer
    dropped_share: float  # of the answers' characters, mean over examples: what the chat template leaves out
    shared_prefix_share: float | None  # of the completions' units, those that all completions begin with
    duplicates: int  # examples that occurred before, prompt and completions
    repeated_prompts: int  # prompts beyond the first of each
    bad_rows: dict[str, int]  # problem -> rows
    bad_row_places: dict[str, list[str]]  # problem -> the first few
    left_out: dict[str, int]  # reason -> rows or completions
    unused: dict[str, int]  # column or key that nothing uses -> rows
    events: dict[str, int]  # what to know -> examples
    over_max_tokens: int | None
    max_tokens: int | None
    prompts_in_other: int | None
    other: str | None
    samples: list[Record] = field(repr=False, default_factory=list)
    ches: dict[str, dict[str, float]] = field(default_factory=dict)  # of pairs, where a model scored them: percentiles
    unscored: int = 0  # pairs that were too long for it

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "samples"}


class _Tally:
    def __init__(self) -> None:
        self.rows = self.duplicates = self.over = 0
        self.lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": [], "completion": [], "whole": []}
        self.numbers: dict[str, list[float]] = {name: [] for name in SUMMED}
        self.directions = Directions()
        self.shared = self.completion_units = 0
        self.seen: set[bytes] = set()
        self.prompts: Counter[bytes] = Counter()
        self.bad = Faults()
        self.places: dict[str, list[str]] = {}
        self.left_out: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.samples: list[Record] = []
        self.first_problem: tuple[str, BadRowError] | None = None

    def add_bad(self, where: str, problem: BadRowError) -> None:
        self.first_problem = self.first_problem or (where, problem)
        places = self.places.setdefault(self.bad.see(str(problem)), [])
        if len(places) < _EXAMPLES_SHOWN:
            places.append(where)


def inspect_file(
    source: Path | Location,
    *,
    columns: Mapping[str, str] | None = None,
    tokenizer: TextTokenizer | None = None,
    max_tokens: int | None = None,
    kind: ExampleKind | None = None,
    other: Path | Location | None = None,
    samples: int = 1,
    progress: bool = True,
) -> DataReport:
    """Reads the whole source and reports; rows that cannot be used are counted, not fatal, unless all are.

    `columns`: role -> column, where names do not tell. `other` is the other split: prompts in both are counted.
    """
    tally = _Tally()
    location = _location(source)
    is_plain = tokenizer is not None and tokenizer.is_plain
    form, layout_name, records = _records(location, columns, tally, plain=is_plain)
    used_kind = kind_to_use(form.kind, kind)
    if not can_be(form.kind, used_kind):
        raise UserError(f"{location}: holds {form.name}, of which no {used_kind} data can be made")
    for batch in track(batched(records, _BATCH), f"reading {location.stem}", unit_size=_BATCH, show=progress):
        _add(tally, batch, used_kind, tokenizer, max_tokens, samples)
    examples = len(tally.lengths["whole"])
    if not examples and tally.first_problem:
        raise located(location, *tally.first_problem)
    rule = rule_text(form.kind, used_kind)
    return DataReport(
        path=str(location),
        format=f"{layout_name} ({rule})" if rule else layout_name,
        kind=used_kind,
        rows=tally.rows,
        examples=examples,
        unit="tokens" if tokenizer else "characters",
        lengths={name: _percentiles(values) for name, values in tally.lengths.items() if values},
        edit_distance=_distances(tally.numbers["edit_distance"]),
        hamming=_distances(tally.numbers["hamming"]),
        token_hamming=_distances(tally.numbers["token_hamming"]),
        length_bias=length_bias(tally.lengths["chosen"], tally.lengths["rejected"]),
        contradictory=tally.directions.contradictory(),
        dropped_share=round(sum(tally.numbers["dropped_share"]) / max(1, examples), 5),
        shared_prefix_share=tally.shared / tally.completion_units if tally.completion_units else None,
        duplicates=tally.duplicates,
        repeated_prompts=sum(tally.prompts.values()) - len(tally.prompts),
        bad_rows=dict(tally.bad.most_common()),
        bad_row_places=tally.places,
        left_out=dict(tally.left_out.most_common()),
        unused=dict(sorted(tally.unused.items())),
        events=dict(tally.events.most_common()),
        over_max_tokens=tally.over if tokenizer and max_tokens else None,
        max_tokens=max_tokens,
        prompts_in_other=len(prompt_hashes(other, columns) & tally.prompts.keys()) if other else None,
        other=str(other) if other else None,
        samples=tally.samples,
    )


def _location(source: Path | Location) -> Location:
    return source if isinstance(source, Location) else Location(str(source))


def _records(
    location: Location, columns: Mapping[str, str] | None, tally: _Tally, *, plain: bool
) -> tuple[Format, str, Iterator[tuple[str, Record]]]:
    reading = open_source(location, columns)
    notes = Notes(plain=plain, media=reading.layout.media)

    def read() -> Iterator[tuple[str, Record]]:
        for place, values in reading.entries():
            tally.rows += 1
            try:
                found = records_of(reading.layout, values, notes)
            except BadRowError as problem:
                tally.add_bad(place, problem)
                continue
            for record in found:
                yield place, record
        tally.left_out += notes.left_out
        tally.unused.update(reading.unused)
        tally.unused.update(notes.unused)

    return reading.layout.form, reading.layout.name, read()


def _add(
    tally: _Tally,
    batch: Sequence[tuple[str, Record]],
    kind: ExampleKind,
    tokenizer: TextTokenizer | None,
    max_tokens: int | None,
    samples: int,
) -> None:
    used: list[tuple[str, Record]] = []
    for where, record in batch:
        result = as_kind(record, kind)
        if isinstance(result, str):
            tally.left_out[result] += 1
        else:
            used += [(where, entry) for entry in result]
    records = [record for _, record in used]
    sizes: Sequence[Any] = [None] * len(records)
    if tokenizer:
        sizes = tokenise(records, tokenizer, max_tokens=2**31, too_long="stop")
    for (where, record), tokens in zip(used, sizes, strict=True):
        if isinstance(tokens, BadRowError):
            tally.add_bad(where, tokens)
            continue
        _count(tally, record, tokens, max_tokens)
        if len(tally.samples) < samples:
            tally.samples.append(record)


def _count(tally: _Tally, record: Record, tokens: TokenizedRecord | None, max_tokens: int | None) -> None:
    texts = [readable(completion) for completion in record.completions]
    if tokens is not None:
        prompt, completions = len(tokens.prompt), [len(entry) for entry in tokens.completions]
        shared = common_prefix_tokens(tokens.completions)
        tally.events.update(tokens.events)
    else:
        prompt, completions = len(readable(record.prompt)), [len(text) for text in texts]
        shared = common_characters(texts)
    whole = prompt + max(completions)
    tally.over += max_tokens is not None and whole > max_tokens
    tally.lengths["prompt"].append(prompt)
    tally.lengths["whole"].append(whole)
    names = ("chosen", "rejected") if is_pair(record) else ("completion",) * len(completions)
    for name, length in zip(names, completions, strict=True):
        tally.lengths[name].append(length)
    if len(completions) > 1:
        tally.shared += shared * len(completions)
        tally.completion_units += sum(completions)
    for name, value in numbers_of(record, tokens, SUMMED).items():
        if name in tally.numbers:
            tally.numbers[name].append(value)
    prompt_key = prompt_hash(record.prompt)
    tally.directions.add(record, prompt_key)
    tally.prompts[prompt_key] += 1
    key = hashlib.sha256(prompt_key + "\0".join(texts).encode()).digest()[:16]
    tally.duplicates += key in tally.seen
    tally.seen.add(key)


def prompt_hashes(source: Path | Location, columns: Mapping[str, str] | None = None) -> set[bytes]:
    """The `prompt_hash` of every usable row of a source."""
    _, _, records = _records(_location(source), columns, _Tally(), plain=False)
    return {prompt_hash(record.prompt) for _, record in records}


def prompt_hash(prompt: Prompt) -> bytes:
    """16 bytes that tell prompts apart; a single user message and the same plain text are one prompt."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        prompt = text_of_content(prompt[0]["content"])
    return hashlib.sha256(readable(prompt).strip().encode()).digest()[:16]


_POINTS = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}


def _percentiles(values: list[int]) -> dict[str, int]:
    return {name: int(np.percentile(values, point)) for name, point in _POINTS.items()}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.percentile(values, point)) for name, point in _POINTS.items()}


def _distances(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    array = np.array(values)
    points = {f"p{point}": round(float(np.percentile(array, point)), 5) for point in (5, 50, 95)}
    low = float((array < LOW_EDIT_DISTANCE).mean())
    return {"mean": round(float(array.mean()), 5), **points, "share_under_0.1": round(low, 5)}
