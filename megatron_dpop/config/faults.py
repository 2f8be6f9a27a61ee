"""What is wrong with a config, in one line: key, value and the fix."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from dpop_base.architectures.capacity import OF_CAPACITY, WHY
from dpop_base.errors import printable
from megatron_dpop.config.losses import LOSSES, PAIR_LOSSES
from megatron_dpop.config.other_names import our_name
from megatron_dpop.config.schema import Config


class Fault(NamedTuple):
    key: str  # dotted
    text: str  # names the key too


def first_fault(error: ValidationError) -> Fault:
    """Returns the first of the faults that pydantic found."""
    first = error.errors()[0]
    key, loss = _dotted(first["loc"])
    kind = first["type"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = first.get("ctx", {}).get("tag")
        return Fault(f"{key}.name", _no_such_loss(f"{key}.name", given, is_term=key != "loss"))
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return Fault(key, _no_effect(key, loss) if loss else _unknown(key))
    if kind in ("missing", "missing_argument"):
        return Fault(key, f"{key} is missing; add it")
    message = first["msg"].removeprefix("Value error, ")
    if kind in ("dataclass_type", "model_attributes_type"):
        message = "a section of keys is needed here"
    return Fault(key, f"{key}: {printable(repr(first['input']))} is not valid: {message[0].lower() + message[1:]}")


def known_keys() -> list[str]:
    """Returns every key that a config may hold, dotted (`loss` holds the keys of the loss it names)."""
    keys: list[str] = []
    for section in dataclasses.fields(Config):
        keys.append(section.name)
        for kind in (section.type, *typing.get_args(section.type)):  # `LoraConfig | None` has two
            keys += [f"{section.name}.{name}" for name in keys_of(kind)]
    return keys


def keys_of(kind: Any) -> list[str]:
    """Returns the keys of a section, as a config writes them."""
    fields = getattr(kind, "__pydantic_fields__", {})
    return [field.alias or name for name, field in fields.items()]


def _dotted(location: Sequence[str | int]) -> tuple[str, str | None]:
    """The key as a config has it, and the loss that it belongs to: pydantic's path names each loss that was chosen."""
    parts = [str(part) for part in location]
    if parts[:1] != ["loss"]:
        return ".".join(parts), None
    named = [part for part in parts[1:] if part in LOSSES]
    kept = [part for part in parts[1:] if part not in LOSSES and part != "loss"]
    return ".".join(["loss", *kept]), named[-1] if named else None


def _unknown(key: str) -> str:
    if key.rpartition(".")[2] in OF_CAPACITY:
        return f"{key}: experts take all tokens that are sent to them ({WHY}); remove it"
    near = nearest_key(key)
    return f"unknown key {key}" + (f"; did you mean {near}?" if near else "; remove it")


def nearest_key(key: str) -> str | None:
    """Returns what was probably meant: by another trainer's name for it, else by its letters; None if nothing is."""
    if (ours := our_name(key)) is not None:
        return ours
    known = known_keys()
    if "." not in key:  # a key without its section
        known = [entry for entry in known if entry.rpartition(".")[2] == key] or known
        if len(known) == 1:
            return known[0]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.5)), None)


def _no_effect(key: str, loss: str) -> str:
    section, _, name = key.rpartition(".")
    known = [entry for entry in keys_of(LOSSES[loss]) if entry != "name"]
    near = difflib.get_close_matches(name, [*known, "name"], n=1)
    fix = f"did you mean {section}.{near[0]}?" if near else f"its keys are {', '.join(known)}"
    return f"{key} has no effect on loss {loss!r}; {fix}"


def _no_such_loss(key: str, given: str | None, *, is_term: bool) -> str:
    known: Iterable[str] = PAIR_LOSSES if is_term else LOSSES
    choice = f"give one of {', '.join(known)}"
    if given is None:
        return f"{key} is missing; {choice}"
    if is_term and given == "sft":
        fix = "for the likelihood of the chosen answer give nll_weight on another term"
        return f"{key}: 'sft' is no loss of pairs; {fix}"
    near = difflib.get_close_matches(given, known, n=1)
    what = "loss of pairs" if is_term else "loss"
    return f"{key}: {given!r} is no {what}; {f'did you mean {near[0]}?' if near else choice}"
