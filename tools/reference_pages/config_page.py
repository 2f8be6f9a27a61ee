"""docs/reference/config.md: every key of a config with type, default, bounds and the schema's own comment."""

import ast
import dataclasses
import inspect
import io
import re
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import annotated_types

from megatron_dpop.config import schema
from megatron_dpop.config.losses import LOSSES

INTRODUCTION = """# Config keys

A config is one YAML file of sections. Every key can be overridden on the command line (`--section.key VALUE`, VALUE is
read as YAML); an unknown key is an error that names the nearest known one. `megatron-dpop train CONFIG --dry-run`
checks a file.
"""
NAMES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    schema.WandbConfig: "a project's name or keys",
    schema.BestConfig: "keys",
    dict[str, str]: "names to names",
}
# Values that may be sections of their own: what stands above their keys.
NESTED = {
    "data": (schema.SourceConfig, "Of each source, where more than its path is given:"),
    "checkpoint": (schema.BestConfig, "Of `checkpoint.best`:"),
    "logging": (schema.WandbConfig, "Of `logging.wandb`, where more than the project's name is given:"),
}
BOUNDS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}


def config_page() -> str:
    sections = (
        _losses() if section.name == "loss" else _section(section.name, _dataclass_of(section.type))
        for section in dataclasses.fields(schema.Config)
    )
    return "\n".join([INTRODUCTION, *sections])


def _dataclass_of(kind: Any) -> type:
    """`LoraConfig` of `LoraConfig | None`."""
    (found,) = (
        option
        for option in (kind, *typing.get_args(kind))
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    )
    return found


def _section(name: str, kind: type) -> str:
    note = (
        inspect.getdoc(kind) if "__doc__" in vars(kind) and not (kind.__doc__ or "").startswith(kind.__name__) else None
    )
    lines = [f"## {name}", ""]
    if name == "lora":
        lines += ["`lora: null`, the default, trains all parameters.", ""]
    if note:
        lines += [note.replace("\n", " "), ""]
    lines += _table(kind, prefix=f"{name}.")
    if name in NESTED:
        inner, heading = NESTED[name]
        lines += ["", heading, "", *_table(inner)]
    return "\n".join([*lines, ""])


def _table(kind: type, *, prefix: str = "") -> Iterator[str]:
    comments = _comments(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    yield from ("| key | type | default | |", "| --- | --- | --- | --- |")
    for name, field in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        yield f"| `{prefix}{field.alias or name}` | {_type(hints[name])} | {default} | {comments.get(name, '')} |"


def _losses() -> str:
    lines = [
        "## loss",
        "",
        "`loss.name` chooses; the other keys are that loss's own, and another loss's key is an error. Without a "
        "section, or without a name, the loss is `dpop`. Formulas: [losses](../losses.md).",
        "",
        "| `loss.name` | key | value | default | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, kind in LOSSES.items():
        comments = _comments_with_bases(kind)
        hints = typing.get_type_hints(kind, include_extras=True)
        for key, field in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
            if key not in ("name", "terms"):
                value, note = _value(field.get_default()), comments.get(key, "")
                lines.append(f"| `{name}` | `loss.{field.alias or key}` | {_type(hints[key])} | {value} | {note} |")
    terms = "list of `{name, weight, ...}`: pair losses, their weights, their keys"
    lines.append(f"| `sum` | `loss.terms` | {terms} | required | |")
    return "\n".join([*lines, ""])


def _comments_with_bases(kind: type) -> dict[str, str]:
    """Returns what `_comments` does, and those of the classes that it extends included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _comments(typing.cast(type, base))
    return found


def _comments(kind: type) -> dict[str, str]:
    """The comment at the end of each field's line, by the field's name."""
    source = inspect.getsource(kind)
    at_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    fields = [node for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: at_line.get(node.end_lineno or 0, "") for node in fields}  # type: ignore[union-attr]


def _value(value: object) -> str:
    """Writes a value as YAML does."""
    if isinstance(value, tuple):
        return f"`[{', '.join(_value(item).strip('`') for item in value)}]`"
    if isinstance(value, bool) or value is None:
        return f"`{ {True: 'true', False: 'false', None: 'null'}[value] }`".replace(" ", "")
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return f"`{re.sub(r'e-0*', 'e-', f'{value:.1e}')}`"
    return f"`{value}`" if value != "" else '`""`'


def _type(hint: Any) -> str:
    """Says a type in words: `whole number ≥ 1 or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == schema.Sources or (origin is Annotated and schema.SourceConfig in typing.get_args(arguments[0])):
        return "files: one path, or a list of paths or sources"
    if origin is Annotated:
        return " ".join([_type(arguments[0]), *filter(None, (_bounds(extra) for extra in arguments[1:]))])
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in arguments)
    if origin is tuple:
        return (
            f"list of {_type(arguments[0])}" if Ellipsis in arguments else f"{len(arguments)} of: {_type(arguments[0])}"
        )
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(option) for option in arguments)
    return "keys and values" if origin is dict else NAMES[hint]


def _bounds(extra: Any) -> str:
    """Says the bounds of one annotation; what is no bound says nothing."""
    rules = getattr(extra, "metadata", (extra,))
    limits = ((BOUNDS.get(type(rule)), rule) for rule in rules)
    return " and ".join(f"{sign} {dataclasses.astuple(rule)[0]}" for sign, rule in limits if sign)
