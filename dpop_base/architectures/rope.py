"""Rotary settings as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) spell them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpop_base.architectures.architecture import (
    LinearScaling,
    RopeScaling,
    Scaling,
    ShortScaling,
    YarnScaling,
)
from dpop_base.architectures.fields import Fields, Only

DEFAULT_THETA = 10_000.0  # of a family whose class in transformers names none

Table = dict[str, Any]


@dataclass(frozen=True)
class Rope:
    """Rotary positions, and up to which one they are computed as here."""

    theta: float
    max_position_embeddings: int
    scaling: Scaling | None = None
    percent: float = 1.0  # of each head's dimensions

    def options(self) -> dict[str, Any]:
        """Returns the fields that `Architecture` has of them."""
        return {
            "rope_theta": self.theta,
            "rope_scaling": self.scaling,
            "rotary_percent": self.percent,
            "max_position_embeddings": self.max_position_embeddings,
        }


def read_rope(fields: Fields, *, partial: float | None = None) -> Rope:
    """The one setting of all layers. Raises UserError for a scaling that Megatron-Core and transformers do not share.

    partial: the share of each head that is rotated where config.json names none, of families whose share may differ.
    """
    table = rope_table(fields, "rope_scaling")
    parameters = rope_table(fields, "rope_parameters")
    for name in sorted(set(table) & set(parameters)):
        if table[name] != parameters[name]:
            raise fields.error(
                f"rope_scaling says {name} {table[name]!r}, rope_parameters {parameters[name]!r}",
                "remove the wrong one",
            )
    return rope_of(fields, {**table, **parameters}, partial=partial)


def rope_table(fields: Fields, name: str) -> Table:
    """A field that holds a table, without the nulls in it: they say what absence says."""
    value = fields.get(name)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise fields.error(f"{name} is {value!r}", "it must be a table or null")
    return {key: entry for key, entry in value.items() if entry is not None}


def rope_of(fields: Fields, table: Table, *, partial: float | None = None) -> Rope:
    """One table's setting; what it leaves out stands beside it in config.json."""
    table = dict(table)
    theta = table.pop("rope_theta", None)
    beside = DEFAULT_THETA if fields.get("rope_theta") is None else fields.number("rope_theta")
    if theta is not None and fields.values.get("rope_theta") not in (None, theta):
        raise fields.error(f"rope_theta says {beside!r}, rope_parameters {theta!r}", "remove the wrong one")
    theta = beside if theta is None else theta
    if not _is_positive(theta):
        raise fields.error(f"rope_theta is {theta!r}", "it must be a positive number")
    percent = _percent(fields, table, partial)
    scaling, positions = _scaling(fields, table)
    if isinstance(scaling, ShortScaling) and partial is None:
        raise fields.error("rope scaling of type 'longrope' is not supported", "only Phi-3's is")
    return Rope(float(theta), positions, scaling, percent)


def _percent(fields: Fields, table: Table, partial: float | None) -> float:
    if partial is None:
        fields.require("partial_rotary_factor", Only((1.0,), "this family rotates whole heads"))
    beside, given = fields.get("partial_rotary_factor"), fields.values.get("partial_rotary_factor")
    if given is not None and table.get("partial_rotary_factor", given) != given:
        raise fields.error(
            f"partial_rotary_factor says {given!r}, rope_parameters {table['partial_rotary_factor']!r}",
            "remove the wrong one",
        )
    percent = table.pop("partial_rotary_factor", beside if beside is not None else partial or 1.0)
    if not _is_positive(percent) or percent > 1 or (partial is None and percent != 1):
        raise fields.error(
            f"partial_rotary_factor is {percent!r}",
            "only 1.0 is, for this family" if partial is None else "it must be above 0 and at most 1",
        )
    return float(percent)


def _scaling(fields: Fields, table: Table) -> tuple[Scaling | None, int]:
    """The scaling, and the number of positions within which it is the same for every sequence."""
    positions = fields.integer("max_position_embeddings")
    kinds = {_kind(table.pop(name)) for name in ("rope_type", "type") if name in table}
    kind = kinds.pop() if len(kinds) == 1 else ("default" if not kinds else str(sorted(map(str, kinds))))
    if kind == "default":
        if table:
            raise fields.error(f"rope settings {sorted(table)} need a rope_type", "name it or remove them")
        return None, positions
    if kind == "linear":
        return LinearScaling(_take(fields, kind, table, ("factor",))["factor"]), positions
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        factor, low, high, original = _take(fields, kind, table, names).values()
        return RopeScaling(factor, low, high, int(original)), positions
    if kind == "dynamic":  # the base grows with the sequence from the original length on; within it, it is unscaled
        found = _take(fields, kind, table, ("factor",), {"original_max_position_embeddings": positions})
        return None, min(positions, int(found["original_max_position_embeddings"]))
    if kind == "yarn":
        return _yarn(fields, table, positions), positions
    if kind in ("longrope", "su"):
        return _short(fields, table, positions)
    raise fields.error(
        f"rope scaling of type {kind!r} is not supported",
        "only 'default', 'linear', 'dynamic', 'llama3', 'yarn' and Phi-3's 'longrope' are",
    )


def _yarn(fields: Fields, table: Table, positions: int) -> YarnScaling:
    truncate = table.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise fields.error(f"rope scaling 'yarn' has truncate {truncate!r}", "it must be true or false")
    defaults = {
        "original_max_position_embeddings": positions,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": None,
        "mscale": None,
        "mscale_all_dim": None,
    }
    found = _take(fields, "yarn", table, ("factor",), defaults)
    factor, one, all_dims = found["factor"], found["mscale"], found["mscale_all_dim"]
    attention = found["attention_factor"]
    if attention is None:
        both = one is not None and all_dims is not None
        attention = _mscale(factor, one) / _mscale(factor, all_dims) if both else _mscale(factor, 1.0)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=int(found["original_max_position_embeddings"]),
        beta_fast=found["beta_fast"],
        beta_slow=found["beta_slow"],
        attention_factor=attention,
        truncate=truncate,
    )


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _short(fields: Fields, table: Table, positions: int) -> tuple[ShortScaling, int]:
    """Beyond the original length all of a sequence's frequencies are others: rows of several cannot have both."""
    factors = table.pop("short_factor", None)
    long = table.pop("long_factor", None)
    for name, values in (("short_factor", factors), ("long_factor", long)):
        if not isinstance(values, list) or not all(map(_is_positive, values)):
            raise fields.error(
                f"rope scaling 'longrope' has {name} {values!r}", "it must be a list of positive numbers"
            )
    beside = fields.get("original_max_position_embeddings")
    defaults = {"original_max_position_embeddings": None, "factor": None, "attention_factor": None}
    found = _take(fields, "longrope", table, (), defaults)
    original = fields.integer("original_max_position_embeddings") if beside is not None else positions
    # transformers prefers the field beside the table.
    if beside is None and found["original_max_position_embeddings"] is not None:
        original = int(found["original_max_position_embeddings"])
    factor = found["factor"] if found["factor"] is not None else positions / original
    attention = found["attention_factor"]
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return ShortScaling(tuple(map(float, factors)), attention), min(positions, original)


def _take(
    fields: Fields, kind: str, table: Table, names: tuple[str, ...], defaults: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """The numbers that a kind of scaling has, and no others."""
    defaults = defaults or {}
    missing, unknown = sorted(set(names) - set(table)), sorted(set(table) - set(names) - set(defaults))
    if missing or unknown:
        faults = ("lacks", missing), ("has the unknown", unknown)
        raise fields.error(
            f"rope scaling {kind!r} {' and '.join(f'{fault} {names}' for fault, names in faults if names)}",
            f"it needs {list(names)}" + (f" and may have {list(defaults)}" if defaults else ""),
        )
    if wrong := {name: value for name, value in table.items() if not _is_positive(value)}:
        raise fields.error(f"rope scaling {kind!r} holds {wrong}", "they must be positive numbers")
    found = {name: float(table[name]) for name in names}
    return found | {name: float(table[name]) if name in table else value for name, value in defaults.items()}


def _kind(value: Any) -> Any:
    return value if isinstance(value, str | None) else repr(value)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
