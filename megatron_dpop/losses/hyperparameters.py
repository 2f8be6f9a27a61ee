"""Hyperparameters of a loss: frozen dataclasses whose fields carry the rule that a value must meet."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dpop_base.errors import UserError


@dataclass(frozen=True)
class NumberRule:
    """A finite number in a range; `above` and `below` exclude their end, `at_least` and `at_most` include it."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    is_optional: bool = False  # null is allowed too

    def read(self, where: str, value: object) -> float | None:
        """Returns the value as a float; UserError names `where` and the range if it does not fit."""
        if value is None and self.is_optional:
            return None
        number = _as_float(value)
        if number is None or not math.isfinite(number) or not self._holds(number):
            raise UserError(f"{where} is {value!r}; give {self.describe()}")
        return number

    def _holds(self, number: float) -> bool:
        return (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )

    def describe(self) -> str:
        """For example "a number > 0"."""
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        return f"a number {limits}{' or null' if self.is_optional else ''}"


@dataclass(frozen=True)
class ChoiceRule:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, where: str, value: object) -> str:
        """The word; UserError names `where` and the words if it is another."""
        if value not in self.words:
            raise UserError(f"{where} is {value!r}; give {' or '.join(self.words)}")
        return str(value)


def number(
    default: float | None,
    *,
    key: str | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A numeric field; `key` is its name in the config where Python reserves the word, and null a default of None."""
    rule = NumberRule(above, at_least, below, at_most, is_optional=default is None)
    return field(default=default, metadata={"rule": rule, "key": key})


def choice(default: str, *others: str) -> Any:
    """A field that takes one of a few words, the default first."""
    return field(default=default, metadata={"rule": ChoiceRule((default, *others)), "key": None})


class Validated:
    """Base of the hyperparameter dataclasses: checks every field when an instance is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            where = f"loss.{config_key(item)}"
            # The dataclasses are frozen; this is their own initialisation.
            object.__setattr__(self, item.name, item.metadata["rule"].read(where, getattr(self, item.name)))


def read_hyperparameters[H](kind: type[H], loss_name: str, values: Mapping[str, object]) -> H:
    """`kind` from the config's values; UserError on a key that this loss does not have, or a wrong value."""
    names = {config_key(item): item.name for item in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise UserError(_unknown_key(key, loss_name, list(names)))
    return kind(**{names[key]: value for key, value in values.items()})


def config_key(item: Any) -> str:
    """The name of a dataclass field in the config."""
    return item.metadata["key"] or item.name


def _unknown_key(key: object, loss_name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        mend = f"did you mean loss.{near[0]}?"
    else:
        mend = f"its keys are {', '.join(known)}" if known else "it has no keys besides name; remove it"
    return f"loss.{key} has no effect on loss {loss_name!r}; {mend}"


def _as_float(value: object) -> float | None:
    """Numbers, and strings such as "3e-1" that YAML 1.1 takes for words; booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
