"""Tokenised sources on disk, keyed by everything that changes them; built once however many processes ask."""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow

from checkpoint_convert.errors import UserError
from checkpoint_convert.files import replacing, write_json

from .build import Recipe, Tally, build
from .storage import StoredExamples
from .tokenizer import tokenizer_fingerprint

VERSION = 1  # of the stored layout and of the rules that make tokens from rows


def fingerprint(recipe: Recipe) -> str:
    """A hash of the file's content, the tokenizer, the template, the lengths' policy and this code's version."""
    if not recipe.path.is_file():
        raise UserError(f"{recipe.path}: no such file")
    with recipe.path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    tokenizer = tokenizer_fingerprint(recipe.tokenizer_folder, recipe.chat_template)
    parts = [VERSION, recipe.path.suffix, content, tokenizer, recipe.max_tokens, recipe.too_long, recipe.kind]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenised(
    recipe: Recipe, key: str, folder: Path | None, *, workers: int, progress: bool
) -> tuple[StoredExamples, Tally]:
    """The source's examples, from the cache folder where they are there, built (and kept there) where not."""
    if folder is None:
        sink = pyarrow.BufferOutputStream()
        tally = build(recipe, sink, workers=workers, progress=progress)
        return StoredExamples(sink.getvalue()), tally
    tokens, facts = folder / f"{key[:32]}.arrow", folder / f"{key[:32]}.json"
    if not facts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{key[:32]}.lock"):
            if not facts.is_file():
                with replacing(tokens) as temporary, pyarrow.OSFile(str(temporary), "wb") as sink:
                    tally = build(recipe, sink, workers=workers, progress=progress)
                write_json(facts, _facts(tally))  # last: its presence says that the tokens are whole
    return StoredExamples(tokens), _tally(json.loads(facts.read_text(encoding="utf-8")))


def _facts(tally: Tally) -> dict[str, Any]:
    """As JSON. (`dataclasses.asdict` would count a Counter's items instead of copying them.)"""
    values = {field.name: getattr(tally, field.name) for field in fields(tally)}
    return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


def _tally(facts: dict[str, Any]) -> Tally:
    values: dict[str, Any] = {
        name: Counter(value) if isinstance(value, dict) else value for name, value in facts.items()
    }
    return Tally(**values)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file: one process builds while the others wait; a dead one's lock is gone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
