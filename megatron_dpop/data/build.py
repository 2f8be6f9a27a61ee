"""One source to tokens: read, recognise, tokenise, in several processes, in the rows' order."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import batched, chain, islice
from pathlib import Path

import pyarrow

from dpop_base.choices import BadRows, ExampleKind, TooLong
from dpop_base.errors import UserError
from dpop_base.progress import track

from .faults import Faults, fault_of
from .files.rows import Location
from .formats import TABLE, Layout, Notes
from .kinds import LOSSES, as_kind, can_be, rule_text
from .processes import ordered_map
from .reading import Entry, Reading, open_source, records_of
from .records import BadRowError, Record, located
from .storage import SCHEMA, record_batch
from .templates import PromptFormat
from .tokenise import tokenise
from .tokenizer import PLAIN, TextTokenizer, load_tokenizer

BATCH_ROWS = 1024
_FEWEST_BATCHES_FOR_PROCESSES = 5  # with fewer, starting processes takes longer than tokenising here
_PLACES_SHOWN, _FAULTS_SHOWN = 3, 5


@dataclass(frozen=True)
class Recipe:
    """Everything but the rows themselves that changes a source's tokens."""

    location: Location
    tokenizer_folder: Path
    chat_template: PromptFormat | str | None
    max_tokens: int
    too_long: TooLong
    kind: ExampleKind = "pair"
    columns: Mapping[str, str] = field(default_factory=dict)  # role -> column, where the config says so
    bad_rows: BadRows = "stop"
    bad_rows_limit: float = 0.01  # share of a source's rows that may be dropped as bad

    @property
    def plain(self) -> bool:
        return self.chat_template == PLAIN


@dataclass
class Tally:
    """What became of a source's rows."""

    description: str = ""
    rows: int = 0
    examples: int = 0
    bad: Faults = field(default_factory=Faults)  # rows dropped
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows or completions left out, which is no fault
    events: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)  # column or key that nothing uses -> rows
    rows_left_out: list[list[str]] = field(default_factory=list)  # (where, reason) of every row that gave no example

    def add(self, other: "Tally") -> None:
        self.description = self.description or other.description
        self.rows += other.rows
        self.examples += other.examples
        for reason, rows in other.bad.items():
            self.bad.see(reason, rows)
        self.dropped += other.dropped
        self.events += other.events
        self.unused += other.unused
        self.rows_left_out += other.rows_left_out


def build(recipe: Recipe, sink: pyarrow.NativeFile, *, workers: int, progress: bool) -> Tally:
    """Writes the source's examples to `sink` as an Arrow file.

    UserError names the first bad row, or, where they are dropped and too many, counts them by their faults.
    """
    tally = Tally()
    reading = _open(recipe)
    with pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        for batch, part in _results(recipe, reading, workers=workers, progress=progress):
            writer.write_batch(batch)
            tally.add(part)
    tally.unused.update(reading.unused)
    _check_share(recipe, tally)
    if not tally.examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in (tally.bad + tally.dropped).items())
        raise UserError(f"{recipe.location}: no example is left of {tally.rows} rows ({reasons})")
    return tally


def _open(recipe: Recipe) -> Reading:
    reading = open_source(recipe.location, recipe.columns)
    form = reading.layout.form
    if not can_be(form.kind, recipe.kind):
        raise UserError(
            f"{recipe.location}: holds {form.name}, of which no {recipe.kind} data can be made; give other data, or "
            f"choose a loss that takes it: loss.name {LOSSES[form.kind]}"
        )
    return reading


def _check_share(recipe: Recipe, tally: Tally) -> None:
    count = tally.bad.total()
    if count <= recipe.bad_rows_limit * tally.rows:
        return
    faults = "; ".join(
        f"{rows} times: {fault} ({_places(tally, fault)})" for fault, rows in tally.bad.most_common(_FAULTS_SHOWN)
    )
    others = len(tally.bad) - _FAULTS_SHOWN
    faults += f"; and {others} other faults" * (others > 0)
    raise UserError(
        f"{recipe.location}: {count} of {tally.rows} rows ({count / tally.rows:.1%}) cannot be used, more than "
        f"data.bad_rows_limit {recipe.bad_rows_limit:.1%} ({faults}); fix the file, or raise the limit"
    )


def _places(tally: Tally, fault: str) -> str:
    places = [where for where, reason in tally.rows_left_out if fault_of(reason) == fault_of(fault)]
    return ", ".join(places[:_PLACES_SHOWN]) + ", ..." * (len(places) > _PLACES_SHOWN)


def _results(
    recipe: Recipe, reading: Reading, *, workers: int, progress: bool
) -> Iterator[tuple[pyarrow.RecordBatch, Tally]]:
    rest = batched(reading.entries(), BATCH_ROWS)
    head = list(islice(rest, _FEWEST_BATCHES_FOR_PROCESSES))
    batches = chain(head, rest)
    title = f"tokenising {recipe.location.stem}"
    if workers <= 1 or len(head) < _FEWEST_BATCHES_FOR_PROCESSES:
        tokenizer = load_tokenizer(recipe.tokenizer_folder, recipe.chat_template)
        results = (_tokenise_rows(rows, recipe, reading.layout, tokenizer) for rows in batches)
        yield from track(results, title, unit_size=BATCH_ROWS, show=progress)
        return
    parts = ordered_map(_work, batches, workers=workers, start=_start_worker, arguments=(recipe, _Sent(reading.layout)))
    for data, part in track(parts, title, unit_size=BATCH_ROWS, show=progress):
        yield pyarrow.ipc.read_record_batch(data, SCHEMA), part


class _Sent:
    """A layout on its way to another process: its format, which holds functions, goes as its place in the table."""

    def __init__(self, layout: Layout) -> None:
        self.place, self.columns, self.media = TABLE.index(layout.form), dict(layout.columns), layout.media

    def received(self) -> Layout:
        return Layout(TABLE[self.place], self.columns, self.media)


_worker: tuple[Recipe, Layout, TextTokenizer] | None = None  # set once in each process of the pool


def _start_worker(recipe: Recipe, sent: _Sent) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = recipe, sent.received(), load_tokenizer(recipe.tokenizer_folder, recipe.chat_template)


def _work(rows: tuple[Entry, ...]) -> tuple[bytes, Tally]:
    assert _worker is not None
    batch, tally = _tokenise_rows(rows, *_worker)
    return batch.serialize().to_pybytes(), tally


def _tokenise_rows(
    rows: tuple[Entry, ...], recipe: Recipe, layout: Layout, tokenizer: TextTokenizer
) -> tuple[pyarrow.RecordBatch, Tally]:
    tally = Tally(rows=len(rows), description=_description(layout, recipe.kind))
    records: list[Record] = []
    places: list[str] = []
    notes = Notes(plain=recipe.plain, media=layout.media)
    for where, values in rows:
        try:
            found = _usable(records_of(layout, values, notes), recipe.kind, where, tally, notes)
        except BadRowError as problem:
            _leave_out(recipe, tally, where, problem)
            continue
        records += found
        places += [where] * len(found)
    results = tokenise(records, tokenizer, max_tokens=recipe.max_tokens, too_long=recipe.too_long)
    kept = []
    for where, result in zip(places, results, strict=True):
        if isinstance(result, BadRowError):
            _leave_out(recipe, tally, where, result)
        elif result is None:
            reason = f"longer than {recipe.max_tokens} tokens"
            tally.dropped[reason] += 1
            tally.rows_left_out.append([where, reason])
        else:
            kept.append(result)
            tally.events.update(result.events)
    tally.examples = len(kept)
    tally.dropped += notes.left_out
    tally.unused += notes.unused
    return record_batch(kept), tally


def _usable(records: list[Record], kind: ExampleKind, where: str, tally: Tally, notes: Notes) -> list[Record]:
    """The records as the loss takes them; what is left out of them without a fault is counted."""
    usable: list[Record] = []
    for record in records:
        used = as_kind(record, kind)
        if isinstance(used, str):
            tally.dropped[used] += 1
            tally.rows_left_out.append([where, used])
        else:
            usable += used
    if not records:
        tally.rows_left_out.append([where, notes.last_reason])
    return usable


def _leave_out(recipe: Recipe, tally: Tally, where: str, problem: BadRowError) -> None:
    if recipe.bad_rows == "stop":
        hint = "fix it, or set data.bad_rows: drop to go on without such rows (`data inspect` counts them)"
        raise located(recipe.location, where, BadRowError(f"{problem}; {hint}"))
    tally.bad.see(str(problem))
    tally.rows_left_out.append([where, str(problem)])


def _description(layout: Layout, kind: ExampleKind) -> str:
    rule = rule_text(layout.form.kind, kind)
    return f"{layout.name} ({rule})" if rule else layout.name
