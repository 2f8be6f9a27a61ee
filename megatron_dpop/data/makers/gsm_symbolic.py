"""Pairs from reasoning-gym's gsm_symbolic, made as the paper made its pairs from MetaMath; needs no download."""

import importlib.metadata
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.extras import missing
from dpop_base.progress import track

from .corrupt import VERSION, corrupt
from .pairs_file import Made, Pair, write_made

FIRST_SIZE = 1024


def make_gsm_symbolic(
    folder: Path, *, train: int = 320, validation: int = 64, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Writes train.parquet, validation.parquet and datasheet.json to `folder`; returns the datasheet.

    Chosen is the worked answer, rejected the same with one intermediate result wrong. No prompt occurs twice, so
    none in both splits. The validation pairs come first in the generator's order: they stay the same when `train`
    changes.
    """
    if train < 1 or validation < 0:
        raise UserError(f"gsm-symbolic: {train} training and {validation} validation pairs; give at least 1 and 0")
    made = Made({})
    wanted = train + validation
    pairs = _pairs(seed, made.skipped)
    found = [
        pair for _, pair in track(zip(range(wanted), pairs, strict=False), "gsm-symbolic", total=wanted, show=progress)
    ]
    made.splits = {"train": found[validation:], "validation": found[:validation]}
    version = f"{importlib.metadata.version('reasoning-gym')}, corruption {VERSION}"
    return write_made(folder, made, source="reasoning-gym gsm_symbolic", seed=seed, version=version)


def _pairs(seed: int, skipped: Counter[str]) -> Iterator[Pair]:
    seen: set[str] = set()
    for index, (question, answer) in enumerate(problems(seed)):
        if question in seen:
            skipped["prompt already seen"] += 1
            continue
        seen.add(question)
        corruption = corrupt(answer, random.Random(f"{seed}:{index}"))
        if isinstance(corruption, str):
            skipped[corruption] += 1
        else:
            yield Pair(question, answer, corruption.text)


def problems(seed: int) -> Iterator[tuple[str, str]]:
    """(question, worked answer) without end; problem i depends on (seed, i) alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # from a package that reasoning-gym imports
            import reasoning_gym
    except ImportError:
        raise UserError(f"gsm-symbolic: {missing('reasoning-gym', 'quickstart')}") from None
    start, size = 0, FIRST_SIZE
    while True:
        # It draws a template for each of `size` problems at once, the same first ones whatever the size.
        dataset = reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=seed)
        for index in range(start, size):
            problem = dataset[index]
            yield problem["question"], problem["metadata"]["answer_cot"]
        start, size = size, 2 * size
