"""Rows of a file as they stand, chosen: those that fulfil conditions, or a part whose prompts the rest has not."""

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any, TextIO

from dpop_base.choices import ExampleKind
from dpop_base.errors import UserError
from dpop_base.files import replacing
from dpop_base.progress import track

from ..faults import fault_of
from ..files.rows import Location
from ..formats import Notes
from ..formats.ranked import grouped
from ..kinds import as_kind, can_be, kind_to_use
from ..reading import Reading, open_source, records_of
from ..records import BadRowError, Record, located
from ..tokenise import TokenizedRecord, tokenise
from ..tokenizer import TextTokenizer
from .balance import Directions
from .numbers import numbers_of
from .report import prompt_hash
from .scores import read_scores, record_key
from .where import NEED_PAIRS, NEED_SCORES, NEED_TOKENIZER, Condition

Columns = dict[str, Any]
_BATCH = 512


@dataclass
class Selected:
    """What became of a file's rows."""

    written: dict[str, int] = field(default_factory=dict)  # file -> rows
    left_out: Counter[str] = field(default_factory=Counter)  # why -> rows


def filter_rows(
    source: Location,
    output: Path,
    conditions: Sequence[Condition],
    *,
    columns: Mapping[str, str] | None = None,
    kind: ExampleKind | None = None,
    tokenizer: TextTokenizer | None = None,
    scores: Path | None = None,
    progress: bool = True,
) -> Selected:
    """Writes the rows all of whose examples fulfil all conditions, as JSON Lines; UserError where none is left.

    `scores`: the file of a model's scores, where a condition is on them.
    """
    _check_suffix(output)
    reading = open_source(source, columns)
    form = reading.layout.form
    used = kind_to_use(form.kind, kind)
    if not can_be(form.kind, used):
        raise UserError(f"{source}: holds {form.name}, of which no {used} data can be made")
    _check_names(source, conditions, used, tokenizer, scores)
    scored = read_scores(scores) if scores is not None else None
    plain = tokenizer is not None and tokenizer.is_plain
    names = [condition.name for condition in conditions]
    directions, seen = Directions(), set[bytes]()
    if "contradicts" in names:
        for _, _, records in _rows(reading, plain=plain):
            for record in _examples(records, used):
                directions.add(record, prompt_hash(record.prompt))
    selected, kept = Selected(), 0
    batches = batched(_rows(reading, plain=plain), _BATCH)
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for batch in track(batches, f"reading {source.stem}", unit_size=_BATCH, show=progress):
            examples = [_examples(records, used) for _, _, records in batch]
            tokens = _tokens(examples, tokenizer)
            for (where, row, records), records_used, tokens_used in zip(batch, examples, tokens, strict=True):
                numbers = [
                    example
                    if isinstance(example, BadRowError)
                    else _numbers(record, example, names, directions, seen, scored)
                    for record, example in zip(records_used, tokens_used, strict=True)
                ]
                reason = _reason(records if isinstance(records, BadRowError) else None, numbers, conditions)
                if reason is None:
                    _write(file, row, source, where)
                    kept += 1
                else:
                    selected.left_out[reason] += 1
        if not kept:
            raise UserError(f"{source}: no row fulfils {' and '.join(map(str, conditions))}; nothing was written")
    selected.written[str(output)] = kept
    return selected


def _check_names(
    source: Location,
    conditions: Sequence[Condition],
    kind: ExampleKind,
    tokenizer: TextTokenizer | None,
    scores: Path | None,
) -> None:
    for condition in conditions:
        if condition.name in NEED_TOKENIZER and tokenizer is None:
            raise UserError(f"--where: {condition.name} needs --tokenizer, which counts tokens")
        if condition.name in NEED_SCORES and scores is None:
            raise UserError(f"--where: {condition.name} needs --scores, the file that `data inspect --scores` wrote")
        if condition.name in NEED_PAIRS and kind != "pair":
            raise UserError(f"--where: {condition.name} is a number of pairs; {source} is read as {kind} data")


def _tokens(examples: Sequence[list[Record]], tokenizer: TextTokenizer | None) -> Iterator[list[Any]]:
    """Encodes all rows' examples together; None without a tokenizer."""
    records = [record for row in examples for record in row]
    found: Sequence[Any] = [None] * len(records)
    if tokenizer is not None:
        found = tokenise(records, tokenizer, max_tokens=2**31, too_long="stop")
    rest = iter(found)
    for row in examples:
        yield [next(rest) for _ in row]


def _numbers(
    record: Record,
    tokens: TokenizedRecord | None,
    names: Sequence[str],
    directions: Directions,
    seen: set[bytes],
    scored: Mapping[bytes, Mapping[str, float]] | None,
) -> dict[str, float] | BadRowError:
    numbers, prompt, key = numbers_of(record, tokens, names), prompt_hash(record.prompt), record_key(record)
    if scored is not None:
        if key not in scored:
            return BadRowError("has no score in the file of --scores")
        numbers |= scored[key]
    numbers |= {"duplicate": float(key in seen), "contradicts": float(directions.contradicts(record, prompt))}
    seen.add(key)
    return numbers


def _reason(
    problem: BadRowError | None, examples: Sequence[Mapping[str, float] | BadRowError], conditions: Sequence[Condition]
) -> str | None:
    """Why a row is left out; None where all of its examples fulfil all conditions."""
    if problem is not None:
        return fault_of(str(problem))
    if not examples:
        return "gives no example of this kind"
    for numbers in examples:
        if isinstance(numbers, BadRowError):
            return fault_of(str(numbers))
        for condition in conditions:
            if not condition.holds(numbers):
                return f"not {condition}"
    return None


def split_rows(
    source: Location,
    folder: Path,
    *,
    count: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Selected:
    """Writes train.jsonl and validation.jsonl; no prompt is in both.

    Rows that share a prompt stay together. They are held out whole, in the order of a seeded hash, as long as they
    fit into the `count` rows (or the `fraction` of all) that are asked for.
    """
    reading = open_source(source, columns)
    groups, selected = _Groups(), Selected()
    roots: list[bytes | None] = []
    for _, _, records in track(_rows(reading, plain=False), f"reading {source.stem}", show=progress):
        if isinstance(records, BadRowError):
            selected.left_out[fault_of(str(records))] += 1
            roots.append(None)
        else:
            roots.append(groups.join([prompt_hash(record.prompt) for record in records]))
    sizes = Counter(groups.find(root) for root in roots if root is not None)
    room = count if count is not None else int((fraction or 0.0) * sizes.total())
    held = _held_out(sizes, room, seed, source)
    names = ("train", "validation")
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(folder / f"{name}.jsonl")) for name in names]
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        written = [0, 0]
        for root, (where, row) in zip(roots, reading.rows.read(), strict=True):
            if root is not None:
                part = int(groups.find(root) in held)
                _write(files[part], row, source, where)
                written[part] += 1
    selected.written = {str(folder / f"{name}.jsonl"): rows for name, rows in zip(names, written, strict=True)}
    return selected


def _held_out(sizes: Counter[bytes], room: int, seed: int, source: Location) -> set[bytes]:
    held: set[bytes] = set()
    left = room
    for root in sorted(sizes, key=lambda root: hashlib.sha256(f"{seed}\0".encode() + root).digest()):
        if sizes[root] <= left:
            held.add(root)
            left -= sizes[root]
    if not held or len(held) == len(sizes):
        raise UserError(
            f"{source}: {room} of {sizes.total()} rows cannot be held out so that both parts have some and share no "
            f"prompt ({len(sizes)} groups of rows share prompts among them); ask for another number"
        )
    return held


class _Groups:
    """Prompts that some row has together, joined (a conversation's rows have one for each of its answers)."""

    def __init__(self) -> None:
        self._above: dict[bytes, bytes] = {}

    def find(self, key: bytes) -> bytes:
        while (above := self._above.setdefault(key, key)) != key:
            self._above[key] = self._above[above]
            key = above
        return key

    def join(self, keys: Sequence[bytes]) -> bytes | None:
        roots = [self.find(key) for key in keys]
        for root in roots[1:]:
            self._above[root] = roots[0]
        return roots[0] if roots else None


def _rows(reading: Reading, *, plain: bool) -> Iterator[tuple[str, Columns, list[Record] | BadRowError]]:
    """(where, the row as it stands, its records or what is wrong with it)."""
    notes = Notes(plain=plain, media=reading.layout.media)
    roles = {column: role for role, column in reading.layout.columns.items()}
    for where, row in reading.rows.read():
        values = {roles[column]: value for column, value in row.items() if column in roles}
        entries = list(grouped([(where, values)])) if reading.layout.form.grouped else [(where, values)]
        try:
            yield where, row, [record for _, entry in entries for record in records_of(reading.layout, entry, notes)]
        except BadRowError as problem:
            yield where, row, problem


def _examples(found: list[Record] | BadRowError, kind: ExampleKind) -> list[Record]:
    records = [] if isinstance(found, BadRowError) else found
    used = [as_kind(record, kind) for record in records]
    return [record for entry in used if not isinstance(entry, str) for record in entry]


def _check_suffix(path: Path) -> None:
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: rows are written as JSON Lines; give a name that ends with .jsonl")


def _write(file: TextIO, row: Columns, source: Location, where: str) -> None:
    try:
        text = json.dumps(row, ensure_ascii=False, default=_plain)
    except TypeError as problem:
        raise located(source, where, BadRowError(str(problem))) from None
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character in a column that nothing reads
        text = json.dumps(row, default=_plain)
    file.write(text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"holds a {type(value).__name__}, which JSON Lines cannot hold; leave that column out")
