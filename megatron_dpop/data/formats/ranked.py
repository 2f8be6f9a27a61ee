"""Several completions of one prompt, rated or ranked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..read_rows import Row as NumberedRow
from ..records import BadRowError, Completion, Record, check_record, identity, kind_of, text_of
from .columns import Row, completion_of, list_of, number_of, prompt_of

COMPLETIONS = ("responses", "completions", "answers", "candidates", "generations")
SCORES = ("scores", "ratings", "rewards")  # higher is better
RANKS = ("ranks", "rank", "ranking")  # lower is better
SCORE_IN_ENTRY = ("overall_score", "score", "rating", "reward")
TEXT_IN_ENTRY = ("response", "completion", "answer", "text", "content")
SINGLE_SCORES = ("rating", "score", "reward", "overall_score")
SINGLE_TEXTS = ("response", "completion", "answer")


def parallel_lists(row: Row) -> list[Record]:
    """A list of completions and one of scores or ranks (`responses` with `scores`, `completions` with `ranks`)."""
    name = first_of(row, COMPLETIONS)
    by = first_of(row, SCORES + RANKS)
    values, numbers = list_of(row, name), list_of(row, by)
    if len(values) != len(numbers):
        raise BadRowError(f"`{name}` has {len(values)} entries and `{by}` {len(numbers)}; one each is needed")
    texts = [completion_of(value, f"{name}[{index}]") for index, value in enumerate(values)]
    scores = [number_of(value, f"{by}[{index}]") for index, value in enumerate(numbers)]
    return [_ranked(row, name, texts, [-score for score in scores] if by in RANKS else scores)]


def rated_entries(row: Row) -> list[Record]:
    """A list of objects, each with its text and its score or rank (UltraFeedback, Nectar)."""
    name = first_of(row, COMPLETIONS)
    texts, scores = [], []
    for index, entry in enumerate(list_of(row, name)):
        field = f"{name}[{index}]"
        if not isinstance(entry, dict):
            raise BadRowError(f"`{field}` is {kind_of(entry)}; an object with a text and a score is needed")
        text_name, by = first_of(entry, TEXT_IN_ENTRY), first_of(entry, SCORE_IN_ENTRY + RANKS)
        texts.append(text_of(entry[text_name], f"{field}.{text_name}"))
        score = number_of(entry[by], f"{field}.{by}")
        scores.append(-score if by in RANKS else score)
    return [_ranked(row, name, texts, scores)]


def _ranked(row: Row, name: str, texts: Sequence[Completion], scores: list[float]) -> Record:
    """Repeated completions are one, with its best score: models often give the same short answer twice."""
    if not texts:
        raise BadRowError(f"`{name}` is an empty list; completions are needed")
    keys = [identity(completion) for completion in texts]
    best_of: dict[str, float] = {}
    for key, score in zip(keys, scores, strict=True):
        best_of[key] = max(score, best_of.get(key, score))
    first_of = [keys.index(key) for key in best_of]
    kept, ranks = tuple(texts[index] for index in first_of), tuple(best_of.values())
    top = max(ranks)
    prompt = prompt_of(row, "prompt" if "prompt" in row else "instruction", "system")
    record = Record(prompt, kept, tuple(score == top for score in ranks), ranks)
    return check_record(record, [f"{name}[{index}]" for index in first_of])


def grouped(rows: Iterable[NumberedRow]) -> Iterator[NumberedRow]:
    """Rows of (prompt, response, rating) gathered by prompt, in the order in which prompts first occur."""
    groups: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in rows:
        key = repr((row.get("system"), row.get("prompt")))
        group = groups.setdefault(key, (where, {**row, "responses": [], "scores": []}))[1]
        text_name = next((name for name in SINGLE_TEXTS if name in row), "response")
        by = next((name for name in SINGLE_SCORES if name in row), "rating")
        group["responses"].append(row.get(text_name))
        group["scores"].append(row.get(by))
    yield from groups.values()


def first_of(row: Row, names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise BadRowError(f"none of {', '.join(f'`{name}`' for name in names)} is there")
    return name
