"""Which format a file has and which column plays which role: from its first rows, or as the config says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..records import BadRowError
from .fields import BESIDE, ROLES, is_empty
from .guess import guess, nearest
from .ranked import COMPLETIONS, RANKS, SCORE_IN_ENTRY, TEXT_IN_ENTRY
from .table import TABLE, Format, Values

_BESIDE_SLOTS = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
Sample = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Layout:
    """A file's format and columns. `columns` has every role that the format can use and the file may have."""

    form: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    media: str = ""  # a column of images, videos or sounds that the file has

    @property
    def name(self) -> str:
        """Says the format in words, and the columns that are not called by their role."""
        renamed = [
            f"{role}: {column}" for role, column in self.columns.items() if role not in BESIDE and role != column
        ]
        return f"{self.form.name} ({', '.join(renamed)})" if renamed else self.form.name


def recognise(sample: Sample, given: Mapping[str, str] | None = None) -> Layout:
    """The layout of a file that begins with these rows; BadRowError says what is missing, or what could be either.

    `given`: the config's `columns`, role -> column.
    """
    present = list(dict.fromkeys(name for row in sample for name in row))
    if given:
        _check_given(given, present)
    fitting = [layout for form in TABLE if (layout := _layout(form, sample, present, given)) is not None]
    if not fitting:
        raise BadRowError(_unknown(sample, present, given))
    chosen = fitting[0]
    _check_other_readings(chosen, fitting, sample)
    _check_rivals(chosen, sample, present, given or {})
    return chosen


def _layout(form: Format, sample: Sample, present: list[str], given: Mapping[str, str] | None) -> Layout | None:
    if given and any(role not in form.slots and role not in BESIDE for role in given):
        return None
    slots = {**form.slots, **{role: names for role, names in _BESIDE_SLOTS.items() if role not in form.slots}}
    columns: dict[str, str] = {}
    for role, names in slots.items():
        if given and role in given:
            columns[role] = given[role]
            continue
        taken = {*columns.values(), *(given or {}).values()}
        free = [name for name in names if name in present and name not in taken]
        filled = [name for name in free if any(not is_empty(row.get(name)) for row in sample)]
        if free:
            columns[role] = (filled or free)[0]
        elif role not in form.slots:
            if names[0] not in taken:
                columns[role] = names[0]  # a later row may have it
        elif role not in form.optional:
            return None
    if "input" in columns and columns.get("prompt") != "instruction" and "input" not in (given or {}):
        del columns["input"]
    values: Values = {
        role: [row[name] for row in sample if row.get(name) is not None] for role, name in columns.items()
    }
    if not form.fits(values):
        return None
    media = next((name for name in _MEDIA if any(not is_empty(row.get(name)) for row in sample)), "")
    return Layout(form, columns, media)


def _check_given(given: Mapping[str, str], present: list[str]) -> None:
    for role, column in given.items():
        if role not in ROLES:
            near = nearest(role, ROLES)
            raise BadRowError(
                f"columns: {role!r} is nothing that a column can be"
                f"{f'; did you mean {near}?' if near else ''} ({', '.join(ROLES)})"
            )
        if column not in present:
            near = nearest(column, present)
            raise BadRowError(
                f"columns: there is no column {column!r} for {role}{f'; did you mean {near!r}?' if near else ''} "
                f"(there are {_listed(present)})"
            )


def _check_other_readings(chosen: Layout, fitting: Sequence[Layout], sample: Sample) -> None:
    """Two ways to read a file are no matter where they are the same pairs or answers under two names."""
    for other in fitting[1:]:
        if other.form.kind != chosen.form.kind or chosen.form.kind not in ("pair", "sft"):
            continue
        roles = _answer_roles(chosen), _answer_roles(other)
        mine = [chosen.columns[role] for role in roles[0]]
        others = [other.columns[role] for role in roles[1]]
        if set(mine) & set(others):
            continue
        if _last_texts(sample, mine) == _last_texts(sample, others):
            continue
        raise BadRowError(
            f"two readings are possible: {_as_columns(chosen, roles[0])} or {_as_columns(other, roles[1])}; "
            "write the one that is meant"
        )


def _answer_roles(layout: Layout) -> tuple[str, ...]:
    return tuple(
        role
        for role in ("messages", "chosen", "rejected", "first", "second", "verdict", "completion")
        if role in layout.columns
    )


def _as_columns(layout: Layout, roles: Sequence[str]) -> str:
    return f"columns: {_as_yaml({role: layout.columns[role] for role in roles})}"


def _as_yaml(columns: Mapping[str, str]) -> str:
    """Writes columns as a config takes them: a name with a question mark or a colon is quoted."""
    dumped: str = yaml.safe_dump(
        dict(columns), default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return dumped.strip()


def _last_texts(sample: Sample, columns: Sequence[str]) -> list[str]:
    """The texts with which each column's value ends in the first row, however it is written."""
    texts = []
    for name in columns:
        value: Any = next((row[name] for row in sample if not is_empty(row.get(name))), "")
        while isinstance(value, (list, Mapping)):
            if isinstance(value, list):
                value = value[-1] if value else ""
            else:
                value = next((value[key] for key in ("content", "value", "output") if key in value), str(value))
        texts.append(str(value).strip())
    return texts


def _check_rivals(layout: Layout, sample: Sample, present: list[str], given: Mapping[str, str]) -> None:
    """Stops where two columns with different content could have one role."""
    slots = {**_BESIDE_SLOTS, **layout.form.slots}
    for role, column in layout.columns.items():
        if role in given or (role == "prompt" and _is_whole(layout, sample)):
            continue
        taken = set(layout.columns.values())
        for rival in slots.get(role, ()):
            if rival in taken or rival not in present:
                continue
            pairs = [(row.get(column), row.get(rival)) for row in sample]
            if any(not is_empty(theirs) and not is_empty(mine) and mine != theirs for mine, theirs in pairs):
                raise BadRowError(
                    f"both `{column}` and `{rival}` could be the {role}; say which one is: "
                    f"columns: {_as_yaml({role: column})} or columns: {_as_yaml({role: rival})}"
                )


def _is_whole(layout: Layout, sample: Sample) -> bool:
    """Whether the answers are whole conversations, so that a prompt beside them decides nothing."""
    name = layout.columns.get("chosen") or layout.columns.get("completion") or layout.columns.get("first")
    value: Any = next((row[name] for row in sample if name and not is_empty(row.get(name))), None)
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, Mapping) else None
    return str(speaker).lower() in ("system", "developer", "user", "human")


def _unknown(sample: Sample, present: list[str], given: Mapping[str, str] | None) -> str:
    found = _listed(present)
    if unrated := _unrated(sample, (given or {}).get("completions"), present):
        return unrated
    if given:
        return (
            f"columns {', '.join(f'{role}: {name}' for role, name in given.items())} make no known format "
            f"(pairs need prompt, chosen and rejected; the file has {found})"
        )
    likely = [name for name in ("prompt", "chosen", "rejected") if name not in present]
    missing = f"missing {', '.join(f'`{name}`' for name in likely)}; " if len(likely) < 3 else ""
    meant = guess(sample, present)
    advice = (
        f"did you mean columns: {_as_yaml(meant)}?"
        if meant
        else "say what they are with `columns`, for pairs {prompt: ..., chosen: ..., rejected: ...}"
    )
    return f"{missing}columns {found} are no known format; {advice}"


def _unrated(sample: Sample, given: str | None, present: list[str]) -> str:
    """What a list of answers lacks, each an object: a score that is known by its name."""
    for name in (given,) if given else [name for name in COMPLETIONS if name in present]:
        entries = [entry for row in sample if isinstance(row.get(name), list) for entry in row[name]]
        objects = [entry for entry in entries if isinstance(entry, Mapping)]
        is_known = any(key in (*SCORE_IN_ENTRY, *RANKS) for entry in objects for key in entry)
        if objects and len(objects) == len(entries) and not is_known:
            return (
                f"each of `{name}` has {_listed(list(entries[0]))}; it needs its text as one of "
                f"{_listed(TEXT_IN_ENTRY)}, and its score as one of {_listed(SCORE_IN_ENTRY)} or its rank as one of "
                f"{_listed(RANKS)}: rename them"
            )
    return ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)[:200] or "none"
