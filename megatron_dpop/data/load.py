"""The one call that the trainer makes: files in, tokenised examples out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint_convert.errors import UserError

from .blend import blend_order
from .build import Recipe
from .cache import fingerprint, tokenised
from .examples import SourceExamples, TokenizedDataset
from .kinds import KINDS, Kind
from .processes import default_workers
from .tokenise import TOO_LONG, TooLong


@dataclass(frozen=True)
class Source:
    path: Path
    weight: float = 1.0  # how often each example occurs in one pass over the data
    name: str | None = None  # for the source's own metrics; the file's stem if None


def load_dataset(
    sources: Sequence[Source],
    tokenizer_folder: Path,
    *,
    max_tokens: int,
    chat_template: str | None = None,
    too_long: TooLong = "stop",
    kind: Kind = "pair",
    cache: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> TokenizedDataset:
    """Reads, checks and tokenises the sources; the same arguments give the same dataset in every process.

    `chat_template`: None (the tokenizer's own), "none" (plain text), a template file or its text. `cache`: a
    folder that keeps tokens in memory-mapped files; with None they stay in this process's memory. `kind`: what
    the loss takes, "pair", "single" (KTO), "group" (AFT) or "sft". `workers`: processes that tokenise (None: one
    a core, at most 8). UserError names file and row of the first bad example.
    """
    if not sources:
        raise UserError("data: no source is given; list at least one file")
    if too_long not in TOO_LONG:
        raise UserError(f"data.too_long: {too_long!r}; choose one of {', '.join(TOO_LONG)}")
    if kind not in KINDS:
        raise UserError(f"data: kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    count = workers if workers is not None else default_workers()
    loaded = []
    for source, name in zip(sources, source_names(sources), strict=True):
        recipe = Recipe(source.path, tokenizer_folder, chat_template, max_tokens, too_long, kind)
        key = fingerprint(recipe)
        examples, tally = tokenised(recipe, key, cache, workers=count, progress=progress)
        loaded.append(
            SourceExamples(
                name,
                str(source.path),
                tally.description,
                examples,
                key,
                tally.rows,
                tally.dropped,
                tally.events,
            )
        )
    order = blend_order([len(source.examples) for source in loaded], [source.weight for source in sources])
    return TokenizedDataset(loaded, order, has_single_labels=kind == "single")


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name each: the given one or the file's stem, with the folder's before it where stems repeat."""
    stems = [source.name or source.path.stem for source in sources]
    names = [
        stem if source.name or stems.count(stem) == 1 else f"{source.path.parent.name}.{stem}"
        for source, stem in zip(sources, stems, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data: two sources are called {name!r}; give each a `name`")
    return names
