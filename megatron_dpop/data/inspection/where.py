"""Conditions on numbers of examples, as a user writes them: `edit_distance < 0.2 and chosen_tokens <= 512`."""

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dpop_base.errors import UserError

from .numbers import (
    OF_EVERY_EXAMPLE,
    OF_PAIRS,
    OF_PAIRS_WITH_SCORES,
    OF_PAIRS_WITH_TOKENIZER,
    WITH_TOKENIZER,
)

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
NAMES = {**OF_EVERY_EXAMPLE, **OF_PAIRS, **WITH_TOKENIZER, **OF_PAIRS_WITH_TOKENIZER, **OF_PAIRS_WITH_SCORES}
NEED_TOKENIZER = WITH_TOKENIZER.keys() | OF_PAIRS_WITH_TOKENIZER.keys()
NEED_SCORES = OF_PAIRS_WITH_SCORES.keys()
NEED_PAIRS = OF_PAIRS.keys() | OF_PAIRS_WITH_TOKENIZER.keys() | NEED_SCORES


@dataclass(frozen=True)
class Condition:
    name: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.limit:g}"

    def holds(self, numbers: Mapping[str, float]) -> bool:
        return _OPERATORS[self.sign](numbers[self.name], self.limit)


def conditions_of(texts: Sequence[str]) -> list[Condition]:
    """All of them must hold. UserError names what is no condition, or no number's name."""
    found = []
    for text in texts:
        for part in re.split(r"\band\b|&&", text):
            match = _CONDITION.fullmatch(part)
            if match is None:
                raise UserError(
                    f"--where: {part.strip()!r} is no condition; write a name, one of {' '.join(_OPERATORS)} and a "
                    "number, such as `edit_distance < 0.2`, and join several with `and`"
                )
            name, sign, limit = match.groups()
            if name not in NAMES:
                near = difflib.get_close_matches(name, NAMES, n=1)
                advice = f"did you mean {near[0]}?" if near else f"these are known: {', '.join(NAMES)}"
                raise UserError(f"--where: {name} is no number of an example; {advice}")
            found.append(Condition(name, sign, float(limit)))
    return found
