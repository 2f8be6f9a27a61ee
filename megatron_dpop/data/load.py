"""The one call that the trainer makes: sources in, tokenised examples out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpop_base.choices import BAD_ROWS, EXAMPLE_KINDS, TOO_LONG, BadRows, ExampleKind, TooLong
from dpop_base.errors import UserError

from .blend import blend_order
from .build import Recipe
from .cache import fingerprint, tokenised
from .examples import SourceExamples, TokenizedDataset
from .files.rows import Location
from .processes import default_workers
from .templates import PromptFormat


@dataclass(frozen=True)
class DataSource:
    path: str | Path  # a file, a pattern, a folder, or a dataset's name on the hub
    weight: float = 1.0  # how often each example occurs in one pass over the data
    name: str | None = None  # for the source's own metrics; the file's stem if None
    split: str | None = None  # of a folder or hub dataset
    subset: str | None = None  # of a folder or hub dataset that has several configurations
    revision: str | None = None  # of a hub dataset
    columns: Mapping[str, str] = field(default_factory=dict)  # role -> column, where names do not tell

    @property
    def location(self) -> Location:
        return Location(str(self.path), self.split, self.subset, self.revision)


def load_dataset(
    sources: Sequence[DataSource],
    tokenizer_folder: Path,
    *,
    max_tokens: int,
    chat_template: PromptFormat | str | None = None,
    too_long: TooLong = "stop",
    kind: ExampleKind = "pair",
    bad_rows: BadRows = "stop",
    bad_rows_limit: float = 0.01,
    cache: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> TokenizedDataset:
    """Reads, checks and tokenises the sources; the same arguments give the same dataset in every process.

    `chat_template`: None (the tokenizer's own), "none" (plain text), a name, a template file or its text, or one of
    these with all that goes with it. `cache`: a
    folder that keeps tokens in memory-mapped files; with None they stay in this process's memory. `kind`: what
    the loss takes, "pair", "single" (KTO), "group" (AFT) or "sft". `workers`: processes that tokenise (None: one
    a core, at most 8). UserError names file and row of the first bad example, or counts them where `bad_rows` is
    "drop" and they are more than the limit's share of a source.
    """
    if not sources:
        raise UserError("data: no source is given; list at least one file")
    if too_long not in TOO_LONG:
        raise UserError(f"data.too_long: {too_long!r}; choose one of {', '.join(TOO_LONG)}")
    if bad_rows not in BAD_ROWS:
        raise UserError(f"data.bad_rows: {bad_rows!r}; choose one of {', '.join(BAD_ROWS)}")
    if kind not in EXAMPLE_KINDS:
        raise UserError(f"data: kind {kind!r} is unknown; choose one of {', '.join(EXAMPLE_KINDS)}")
    count = workers if workers is not None else default_workers()
    loaded = []
    for source, name in zip(sources, source_names(sources), strict=True):
        recipe = Recipe(
            source.location,
            tokenizer_folder,
            chat_template,
            max_tokens,
            too_long,
            kind,
            dict(source.columns),
            bad_rows,
            bad_rows_limit,
        )
        key = fingerprint(recipe)
        examples, tally = tokenised(recipe, key, cache, workers=count, progress=progress)
        loaded.append(
            SourceExamples(
                name,
                str(source.location),
                tally.description,
                examples,
                key,
                tally.rows,
                tally.bad,
                tally.dropped,
                tally.events,
                tally.unused,
                tuple((where, reason) for where, reason in tally.rows_left_out),
            )
        )
    order = blend_order([len(source.examples) for source in loaded], [source.weight for source in sources])
    return TokenizedDataset(loaded, order, has_single_labels=kind == "single")


def source_names(sources: Sequence[DataSource]) -> list[str]:
    """A name each: the given one or the file's stem, with the folder or split beside it where stems repeat."""
    stems = [source.name or source.location.stem for source in sources]
    names = []
    for source, stem in zip(sources, stems, strict=True):
        if source.name or stems.count(stem) == 1:
            names.append(stem)
        elif source.split:
            names.append(f"{stem}.{source.split}")
        else:
            names.append(f"{Path(source.path).parent.name}.{stem}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data: two sources are called {name!r}; give each a `name`")
    return names
