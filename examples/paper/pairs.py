"""The paper's two kinds of pairs, made on the spot: worked problems (low edit distance), multiple choice (high).

Low: gsm-symbolic's problems with one intermediate result corrupted, the short ones, so that a CPU trains on them in
minutes. High: multiple-choice questions from four of reasoning-gym's generators, in ARC's form and through ARC's maker,
each wrong choice against the right one.
"""

import argparse
import json
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet

from megatron_dpop.data.makers.gsm_symbolic import make_gsm_symbolic
from megatron_dpop.data.makers.make import make_pairs
from megatron_dpop.data.makers.pairs_file import Made, Pair, write_made

# Characters: half of gsm-symbolic's problems are within these.
LONGEST_PROMPT, LONGEST_ANSWER = 450, 220
SHORT_SHARE = 4  # problems made for each that is wanted, at first
CHOICES = 4
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def make_low_edit(folder: Path, *, train: int, validation: int, seed: int) -> None:
    """Writes train.parquet, validation.parquet and datasheet.json to `folder`."""
    wanted = {"train": train, "validation": validation}
    share, splits = SHORT_SHARE, {name: list[Pair]() for name in wanted}
    while any(len(splits[name]) < count for name, count in wanted.items()):
        with tempfile.TemporaryDirectory() as scratch:
            sheet = make_gsm_symbolic(
                Path(scratch), train=share * train, validation=share * validation, seed=seed, progress=False
            )
            splits = {name: short_pairs(Path(scratch) / f"{name}.parquet")[:count] for name, count in wanted.items()}
        share *= 2
    source = f"{sheet['source']}, prompts to {LONGEST_PROMPT} and answers to {LONGEST_ANSWER} characters"
    write_made(folder, Made(splits), source=source, seed=seed, version=sheet["source_version"])


def short_pairs(path: Path) -> list[Pair]:
    pairs = [Pair(**row) for row in pyarrow.parquet.read_table(path).to_pylist()]
    return [pair for pair in pairs if len(pair.prompt) <= LONGEST_PROMPT and len(pair.chosen) <= LONGEST_ANSWER]


def make_high_edit(folder: Path, *, train: int, validation: int, seed: int) -> None:
    """Does what `make_low_edit` does; a question gives CHOICES - 1 pairs."""
    questions = -(-(train + validation) // (CHOICES - 1))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "multiple-choice.jsonl"
        lines = [json.dumps(row) for row in islice(multiple_choice(seed), questions)]
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        make_pairs("arc", folder, source=str(source), validation=validation, seed=seed, workers=1, progress=False)


def multiple_choice(seed: int) -> Iterator[dict[str, object]]:
    """Questions in the columns of ARC's dataset, from each generator in turn, without end."""
    sources = [family(seed), weekday(seed), cube(seed), sorting(seed)]
    for at, questions in enumerate(zip(*sources, strict=True)):
        for kind, (question, right, wrong) in enumerate(questions):
            draw = random.Random(f"{seed}:{at}:{kind}")
            options = [right, *draw.sample(sorted(set(wrong) - {right}), CHOICES - 1)]
            draw.shuffle(options)
            labels = "ABCD"
            yield {
                "question": question,
                "choices": {"text": options, "label": list(labels)},
                "answerKey": labels[options.index(right)],
            }


# A question, the right answer, and what wrong ones are drawn from.
Question = tuple[str, str, list[str]]


def family(seed: int) -> Iterator[Question]:
    problems = reasoning_gym_problems("family_relationships", seed)
    first = list(islice(problems, 200))
    relations = [answer for _, answer in first]
    for question, answer in first:
        yield question, answer, relations


def weekday(seed: int) -> Iterator[Question]:
    for question, answer in reasoning_gym_problems("calendar_arithmetic", seed):
        if answer in WEEKDAYS:
            yield question, answer, list(WEEKDAYS)


def cube(seed: int) -> Iterator[Question]:
    for question, answer in reasoning_gym_problems("color_cube_rotation", seed):
        yield question, answer, re.findall(r"^- an? (\w+) \w+ side", question, flags=re.MULTILINE)


def sorting(seed: int) -> Iterator[Question]:
    """Four or more words in the right order, or in another."""
    for at, (question, answer) in enumerate(reasoning_gym_problems("word_sorting", seed)):
        words = answer.split(", ")
        if 4 <= len(words) <= 6:
            draw = random.Random(f"{seed}:{at}")
            yield question, answer, [", ".join(draw.sample(words, len(words))) for _ in range(4 * CHOICES)]


def reasoning_gym_problems(name: str, seed: int, size: int = 2000) -> Iterator[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # from a package that reasoning-gym imports
        import reasoning_gym
    dataset = reasoning_gym.create_dataset(name, size=size, seed=seed)
    return ((problem["question"].strip(), problem["answer"]) for problem in (dataset[at] for at in range(size)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where low-edit/ and high-edit/ are written")
    parser.add_argument("--train", type=int, default=240, metavar="PAIRS")
    parser.add_argument("--validation", type=int, default=48, metavar="PAIRS")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind, make in (("low-edit", make_low_edit), ("high-edit", make_high_edit)):
        make(given.folder / kind, train=given.train, validation=given.validation, seed=given.seed)
