"""A `config.json` read field by field: wrong types and unsupported values become one-line errors that name them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError

LARGEST_SIZE = 1 << 31  # of any dimension, or position
MOST_LAYERS = 5_000  # merely listing the tensors of a billion would take for ever


@dataclass(frozen=True)
class Only:
    """The values of a field under which a model computes as it is built here, and why others would not."""

    values: tuple[Any, ...]
    why: str


@dataclass
class Fields:
    """
    The fields of one `config.json`, with a family's defaults for those that it leaves out. A field that is there
    and null is null: transformers tells it from an absent one (Mistral's `sliding_window`). Remembers which were
    asked for, so that the rest can be refused.
    """

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        """The field's value, null included; the family's default (or None) where it is absent."""
        self.seen.add(name)
        return self.values[name] if name in self.values else self.defaults.get(name)

    def integer(self, name: str) -> int:
        value = self.get(name)
        most = MOST_LAYERS if "layer" in name else LARGEST_SIZE
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.error(self._found(name), f"it must be a positive whole number, at most {most}")
        return value

    def integer_or_none(self, name: str) -> int | None:
        return None if self.get(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(self._found(name), "it must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(self._found(name), "it must be true or false")
        return value

    def require(self, name: str, only: Only) -> None:
        """Refuses a value that would change the result in a way that is not supported; absent and null are allowed."""
        value = self.get(name)
        if value is not None and value not in only.values:
            allowed = [_shown(v) for v in only.values if v is not None]
            fix = f"only {' or '.join(allowed)} is" if allowed else "only a model without it is"
            raise self.error(f"{name} is {_shown(value)}, which is not supported ({only.why})", fix)

    def refuse_unknown(self, harmless: frozenset[str]) -> None:
        """Raises for fields that nobody asked for, that hold something and are not known to be harmless."""
        unknown = sorted(set(self.values) - self.seen - harmless)
        # Names with an underscore are transformers' own notes on where a model came from.
        if unknown := [n for n in unknown if self.values[n] is not None and not n.startswith("_")]:
            raise self.error(
                f"has fields that this family does not define: {', '.join(unknown)}",
                "remove them if they do not change the computation",
            )

    def _found(self, name: str) -> str:
        return f"{name} is {_shown(self.values[name])}" if name in self.values else f"has no {name}"

    def error(self, what: str, fix: str) -> UserError:
        return UserError(f"{self.path}: {what}; {fix}")


def _shown(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    text = repr(value) if text is None else text
    return text if len(text) <= 120 else text[:117] + "..."
