"""Several answers of one prompt, rated or ranked."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..records import BadRowError, Completion, Record, answer_of, identity, kind_of
from .asked import asked
from .fields import Notes, RowFields, is_missing_number, number_of
from .turns import said

COMPLETIONS = ("responses", "completions", "answers", "candidates", "generations")
SCORES = ("scores", "ratings", "rewards", "rating", "score")  # higher is better
RANKS = ("ranks", "rank", "ranking")  # lower is better
SCORE_IN_ENTRY = ("overall_score", "score", "rating", "reward")
TEXT_IN_ENTRY = ("response", "completion", "answer", "text", "content")
UNRATED = "a completion without a rating"


def parallel_lists(fields: RowFields, notes: Notes) -> list[Record]:
    """A list of completions and one of scores or ranks (`responses` with `scores`, `completions` with `ranks`)."""
    by = "scores" if "scores" in fields.columns else "ranks"
    name, by_name = fields.name("completions"), fields.name(by)
    values, numbers = _list(fields, "completions"), _list(fields, by)
    if len(values) != len(numbers):
        raise BadRowError(f"`{name}` has {len(values)} entries and `{by_name}` {len(numbers)}; one each is needed")
    answers = [_answer(value, f"{name}[{index}]") for index, value in enumerate(values)]
    scores = [_score(value, f"{by_name}[{index}]", is_rank=by == "ranks") for index, value in enumerate(numbers)]
    return _ranked(fields, notes, answers, scores)


def gathered_rows(fields: RowFields, notes: Notes) -> list[Record]:
    """What `grouped` made of rows with one rated completion each."""
    name, by_name = fields.name("completion"), fields.name("score")
    answers = [_answer(value, name) for value in fields.need("completions")]
    scores = [_score(value, by_name, is_rank=False) for value in fields.need("scores")]
    return _ranked(fields, notes, answers, scores)


def rated_entries(fields: RowFields, notes: Notes) -> list[Record]:
    """A list of objects, each with its text and its score or rank (UltraFeedback, Nectar, NeMo-RL)."""
    name = fields.name("completions")
    answers, scores = [], []
    for index, entry in enumerate(_list(fields, "completions")):
        field = f"{name}[{index}]"
        if not isinstance(entry, Mapping):
            raise BadRowError(f"`{field}` is {kind_of(entry)}; an object with a text and a score is needed")
        text, by = _first_of(entry, TEXT_IN_ENTRY, field), _first_of(entry, SCORE_IN_ENTRY + RANKS, field)
        answers.append(_answer(entry[text], f"{field}.{text}"))
        scores.append(_score(entry[by], f"{field}.{by}", is_rank=by in RANKS))
        for key in entry:
            if key not in (text, by):
                notes.unused[f"{name}[].{key}"] += 1
    return _ranked(fields, notes, answers, scores)


def _list(fields: RowFields, role: str) -> list[Any]:
    value = fields.need(role)
    if not isinstance(value, list):
        raise BadRowError(f"`{fields.name(role)}` is {kind_of(value)}; a list is needed")
    return value


def _answer(value: Any, field: str) -> Completion:
    answer = said(value, field)
    return answer if isinstance(answer, str) else answer_of(answer)


def _score(value: Any, name: str, *, is_rank: bool) -> float | None:
    if is_missing_number(value):
        return None
    number = number_of(value, name)
    return -number if is_rank else number


def _ranked(fields: RowFields, notes: Notes, answers: list[Completion], scores: list[float | None]) -> list[Record]:
    """Repeated answers are one, with its best score: models often give the same short answer twice."""
    name = fields.name("completions" if "completions" in fields.columns else "completion")
    if not answers:
        raise BadRowError(f"`{name}` is an empty list; completions are needed")
    best_of: dict[str, tuple[float, Completion, int]] = {}
    for index, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if score is None:
            notes.leave_out(UNRATED)
            continue
        key = identity(answer)
        best = max(score, best_of[key][0]) if key in best_of else score
        best_of[key] = (best, answer, best_of[key][2] if key in best_of else index)
    if not best_of:
        return []
    ranks = tuple(score for score, _, _ in best_of.values())
    kept = tuple(answer for _, answer, _ in best_of.values())
    names = tuple(f"{name}[{index}]" for _, _, index in best_of.values())
    preferred = tuple(score == max(ranks) for score in ranks)
    return [asked(fields, notes).answered(kept, preferred, names, scores=ranks)]


def _first_of(entry: Mapping[str, Any], names: tuple[str, ...], field: str) -> str:
    name = next((name for name in names if name in entry), None)
    if name is None:
        raise BadRowError(f"`{field}` has none of {', '.join(f'`{name}`' for name in names)}")
    return name


def grouped(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one rated completion gathered by what they answer, in the order in which prompts first occur."""
    groups: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in rows:
        question = {role: value for role, value in row.items() if role not in ("completion", "score")}
        group = groups.setdefault(repr(question), (where, {**question, "completions": [], "scores": []}))[1]
        group["completions"].append(row.get("completion"))
        group["scores"].append(row.get("score"))
    yield from groups.values()
