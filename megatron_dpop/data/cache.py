"""TokenizedRecord sources on disk, keyed by everything that changes them; built once however many processes ask.

What is kept is checked whenever it is read. Where it is damaged it is built anew, and a line says so.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow

from dpop_base.checksums import digest, file_digests, seal, unseal
from dpop_base.errors import UserError, first_line
from dpop_base.files import locked, replacing, write_json

from .build import Recipe, Tally, build
from .faults import Faults
from .files.rows import find_rows
from .storage import StoredExamples
from .tokenizer import tokenizer_fingerprint

VERSION = 6  # of the stored layout and of the rules that make tokens from rows


class _DamagedError(Exception):
    """What is kept is not what was written."""


def fingerprint(recipe: Recipe) -> str:
    """A hash of the source's content, the tokenizer, the template, the lengths' policy and this code's version."""
    tokenizer = tokenizer_fingerprint(recipe.tokenizer_folder, recipe.chat_template)
    rows = find_rows(recipe.location)
    parts = [VERSION, rows.digest(), tokenizer, recipe.max_tokens, recipe.too_long, recipe.kind]
    parts += [sorted(recipe.columns.items()), recipe.bad_rows, recipe.bad_rows_limit]
    parts += rows.unused_files  # which the kept facts name
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenised(
    recipe: Recipe, key: str, folder: Path | None, *, workers: int, progress: bool
) -> tuple[StoredExamples, Tally]:
    """The source's examples, from the cache folder where they are there, built (and kept there) where not."""
    if folder is None:
        sink = pyarrow.BufferOutputStream()
        tally = build(recipe, sink, workers=workers, progress=progress)
        tokens = sink.getvalue()
        return StoredExamples(tokens, digest(tokens)), tally
    try:
        return _kept_or_built(_Kept(folder, key), recipe, workers=workers, progress=progress)
    except OSError as error:
        place = Path(error.filename or os.devnull)
        if not (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise
        raise UserError(
            f"{error.filename}: the token cache cannot be used ({error.strerror}); let XDG_CACHE_HOME name a folder "
            "that can be written"
        ) from None


def _kept_or_built(kept: "_Kept", recipe: Recipe, *, workers: int, progress: bool) -> tuple[StoredExamples, Tally]:
    try:
        found = kept.read()
    except _DamagedError:
        found = None  # whoever holds the lock looks again, and says so
    if found is not None:
        return found
    with locked(kept.lock):
        try:
            found = kept.read()
        except _DamagedError as damage:
            print(f"{kept.tokens}: is damaged ({damage}); tokenising {recipe.location} anew", file=sys.stderr)
        if found is not None:
            return found
        with replacing(kept.tokens) as temporary:
            with pyarrow.OSFile(str(temporary), "wb") as sink:
                tally = build(recipe, sink, workers=workers, progress=progress)
            tokens = file_digests([temporary])[temporary]
        kept.write_facts(tally, tokens)
        return StoredExamples(kept.tokens, tokens), tally


class _Kept:
    """One source's tokens and, written last, the facts of them: their digest, and what became of the rows."""

    def __init__(self, folder: Path, key: str) -> None:
        self.tokens, self.facts = folder / f"{key[:32]}.arrow", folder / f"{key[:32]}.json"
        self.lock = folder / f".{key[:32]}.lock"

    def read(self) -> tuple[StoredExamples, Tally] | None:
        """None where nothing is kept."""
        try:
            stored = unseal(json.loads(self.facts.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, AttributeError) as damage:
            raise _DamagedError(f"{self.facts.name}: {first_line(damage)}") from None
        if not self.tokens.is_file():
            raise _DamagedError("it is missing")
        if file_digests([self.tokens])[self.tokens] != stored["tokens"]:
            raise _DamagedError("it does not fit its checksum")
        return StoredExamples(self.tokens, stored["tokens"]), _tally(stored["facts"])

    def write_facts(self, tally: Tally, tokens: str) -> None:
        write_json(self.facts, seal({"tokens": tokens, "facts": _facts(tally)}))


def _facts(tally: Tally) -> dict[str, Any]:
    """Returns what JSON takes. (`dataclasses.asdict` would count a Counter's items instead of copying them.)"""
    values = {field.name: getattr(tally, field.name) for field in fields(tally)}
    return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


def _tally(facts: dict[str, Any]) -> Tally:
    values: dict[str, Any] = {
        name: Counter(value) if isinstance(value, dict) else value for name, value in facts.items()
    }
    return Tally(**(values | {"bad": Faults(values["bad"])}))
