"""What is wrong with rows, counted."""

import re
from collections import Counter
from collections.abc import Mapping

_VARIABLE = re.compile(r"'[^']*'|\d+")  # what differs between rows that have one fault


def fault_of(reason: str) -> str:
    """A row's fault without what is this row's own, so that equal faults are counted together."""
    return _VARIABLE.sub("...", reason)


class Faults(Counter[str]):
    """Fault -> rows that have it. Equal faults are counted under the first one's words, which name a value."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self._words = {fault_of(reason): reason for reason in self}

    def see(self, reason: str, rows: int = 1) -> str:
        """Counts it; returns the words that it is counted under."""
        words = self._words.setdefault(fault_of(reason), reason)
        self[words] += rows
        return words
