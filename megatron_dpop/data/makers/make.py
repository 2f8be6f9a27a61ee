"""Pairs from a source dataset: its rows through a rule, in several processes, split by prompt."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import batched, chain, islice
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.progress import track

from ..files.located_row import LocatedRow
from ..processes import default_workers, ordered_map
from ..records import BadRowError, located
from .few_shot import with_examples
from .pairs_file import Made, Pair, write_made
from .rules import RULES
from .source import source_rows

VERSION = "3"  # of the rules: the same version, source and seed give the same pairs
_BATCH_ROWS = 512
_FEWEST_BATCHES_FOR_PROCESSES = 8


@dataclass(frozen=True)
class Work:
    """Rows for one call of a worker; row i draws from a generator of its own, seeded by (seed, split, i)."""

    rule: str
    source: str
    split: str
    seed: int
    first: int
    rows: tuple[LocatedRow, ...]


@dataclass
class Part:
    pairs: list[Pair] = field(default_factory=list)
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def make_pairs(
    rule: str,
    folder: Path,
    *,
    source: str,
    config: str | None = None,
    split: str = "train",
    validation: int = 0,
    validation_source: str | None = None,
    validation_split: str | None = None,
    few_shot: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes train.parquet, validation.parquet and datasheet.json to `folder`; returns the datasheet.

    The validation pairs are either made from a split of their own, training prompts among them left out, or
    `validation` pairs are held out. A prompt is never in both. With `few_shot`, from 0, prompts are those of base
    models (`megatron_dpop.data.makers.few_shot`).
    """
    if validation and (validation_source or validation_split):
        raise UserError(f"{rule}: hold out {validation} pairs or name a validation split, not both")
    count = workers if workers is not None else default_workers()
    train = _gather(rule, source, config, split, seed, workers=count, progress=progress)
    made = Made({"train": train.pairs}, Counter(train.skipped), {"rows": {"train": train.rows}})
    notes = {"train": dict(train.notes)}
    if validation_source or validation_split:
        name = validation_split or split
        held = _gather(rule, validation_source or source, config, name, seed, workers=count, progress=progress)
        prompts = {pair.prompt for pair in train.pairs}
        made.splits["validation"] = [pair for pair in held.pairs if pair.prompt not in prompts]
        made.skipped += held.skipped
        made.skipped["validation prompt that is in the training split"] += len(held.pairs) - len(
            made.splits["validation"]
        )
        made.facts["rows"]["validation"] = held.rows
        notes["validation"] = dict(held.notes)
    else:
        made.splits["train"], made.splits["validation"] = hold_out(train.pairs, validation, seed)
    made.skipped = +made.skipped
    if not made.splits["train"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in made.skipped.items())
        raise UserError(f"{source}: no pair can be made of its {train.rows} rows ({reasons})")
    made.facts["found_in"] = {name: found for name, found in notes.items() if found}
    if few_shot is not None:
        made.splits = with_examples(made.splits, rule, few_shot, seed)
        made.facts["few_shot"] = few_shot
    return write_made(folder, made, source=source, seed=seed, version=f"{rule} {VERSION}")


def hold_out(pairs: Sequence[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, validation): whole prompts, in the order of a seeded hash, until `count` pairs are held out."""
    by_prompt: dict[str, int] = Counter(pair.prompt for pair in pairs)
    order = sorted(by_prompt, key=lambda prompt: hashlib.sha256(f"{seed}\0{prompt}".encode()).digest())
    held: set[str] = set()
    room = count
    for prompt in order:
        if by_prompt[prompt] <= room:
            held.add(prompt)
            room -= by_prompt[prompt]
        if not room:
            break
    if room:
        raise UserError(f"{len(pairs)} pairs were made: {count} cannot be held out for validation")
    return [p for p in pairs if p.prompt not in held], [p for p in pairs if p.prompt in held]


def _gather(rule: str, source: str, config: str | None, split: str, seed: int, *, workers: int, progress: bool) -> Part:
    works = _works(rule, source, split, seed, source_rows(source, config=config, split=split))
    head = list(islice(works, _FEWEST_BATCHES_FOR_PROCESSES))
    everything = chain(head, works)
    if workers > 1 and len(head) == _FEWEST_BATCHES_FOR_PROCESSES:
        parts = ordered_map(run_rule, everything, workers=workers)
    else:
        parts = map(run_rule, everything)
    total = Part()
    seen: set[Pair] = set()
    for part in track(parts, f"{rule}: {split}", unit_size=_BATCH_ROWS, show=progress):
        for pair in part.pairs:
            if pair in seen:
                total.skipped["the same pair twice"] += 1
            else:
                seen.add(pair)
                total.pairs.append(pair)
        total.rows += part.rows
        total.skipped += part.skipped
        total.notes += part.notes
    return total


def _works(rule: str, source: str, split: str, seed: int, rows: Iterable[LocatedRow]) -> Iterator[Work]:
    first = 0
    for batch in batched(rows, _BATCH_ROWS):
        yield Work(rule, source, split, seed, first, batch)
        first += len(batch)


def run_rule(work: Work) -> Part:
    """UserError names the source and the first row whose columns are not the dataset's."""
    part = Part(rows=len(work.rows))
    for index, (where, row) in enumerate(work.rows, work.first):
        try:
            outcome = RULES[work.rule](row, random.Random(f"{work.seed}:{work.split}:{index}"))
        except BadRowError as problem:
            raise located(work.source, where, problem) from None
        part.pairs += outcome.pairs
        part.skipped.update(outcome.skipped)
        part.notes.update(outcome.notes)
    return part
