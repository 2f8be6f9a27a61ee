"""Every key of a config is read by some code: one that had no effect would be an error that nobody sees."""

import ast
import dataclasses
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_dpop.config import losses, schema

ROOT = Path(__file__).parent.parent
SECTIONS = {section.name: section.type for section in dataclasses.fields(schema.Config)}

# `Source(**asdict(source))` hands every key on; a name chooses the loss.
READ_WHOLE = {schema.SourceConfig}


def _classes(annotation: Any) -> Iterator[type]:
    """`LoraConfig` of `LoraConfig | None`, and every loss of the union."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _classes(part)


CLASSES = {kind for annotation in SECTIONS.values() for kind in _classes(annotation)}
CLASSES |= {kind for section in CLASSES for field in dataclasses.fields(section) for kind in _classes(field.type)}
BY_NAME = {kind.__name__: kind for kind in {*CLASSES, losses.AnchoredConfig, losses.PairLossConfig}}
KEYS = sorted(
    (kind.__name__, field.name)
    for kind in BY_NAME.values()
    if kind not in READ_WHOLE
    for field in dataclasses.fields(kind)
    if not (kind.__module__ == losses.__name__ and field.name == "name")
)


# A word of an annotation -> the sections that it may stand for.
MEANT = {name: {kind} for name, kind in BY_NAME.items()}
MEANT |= {name: set(_classes(getattr(losses, name))) for name in ("PairLoss", "NamedLossConfig", "LossConfig")}

Held = dict[str, set[type]]  # names that stand for sections, where a function (or a class) is read


@cache
def _reads() -> set[tuple[str, str]]:
    """(class, key) of what code outside `config/schema.py` and `config/losses.py` reads of a section."""
    found: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "megatron_dpop").rglob("*.py")):
        if path.name in ("schema.py", "losses.py") and path.parent.name == "config":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for scope in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)):
            held = _held(scope)
            found |= {
                (kind.__name__, node.attr)
                for node in ast.walk(scope)
                if isinstance(node, ast.Attribute)
                for kind in _kinds_of(node.value, held)
            }
    return found


def _held(scope: ast.FunctionDef | ast.ClassDef) -> Held:
    """Annotated parameters and fields, `options = config.optimizer`, also several at once, and names of loops."""
    held: Held = {}

    def add(target: ast.AST, kinds: set[type]) -> None:
        if isinstance(target, ast.Name) and kinds:
            held[target.id] = held.get(target.id, set()) | kinds

    arguments = [] if isinstance(scope, ast.ClassDef) else [*scope.args.args, *scope.args.kwonlyargs]
    for argument in arguments:
        add(ast.Name(argument.arg), _annotated(argument.annotation))
    for node in ast.walk(scope):
        if isinstance(node, ast.AnnAssign):
            add(node.target, _annotated(node.annotation))
        elif isinstance(node, ast.Assign):
            targets, values = [node.targets[0]], [node.value]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                targets, values = node.targets[0].elts, node.value.elts
            for target, value in zip(targets, values, strict=False):
                add(target, _kinds_of(value, held))
        elif isinstance(node, ast.comprehension | ast.For):
            add(node.target, _kinds_of(node.iter, held))
    return held


def _annotated(annotation: ast.AST | None) -> set[type]:
    words = [] if annotation is None else [word.id for word in ast.walk(annotation) if isinstance(word, ast.Name)]
    return {kind for word in words for kind in MEANT.get(word, ())}


def _kinds_of(node: ast.AST, held: Held) -> set[type]:
    """The sections that an expression may be: `config.optimizer`, `self.options`, or a name that is held."""
    if isinstance(node, ast.Name):
        return held.get(node.id, set())
    if not isinstance(node, ast.Attribute):
        return set()
    if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in held:
        return held[node.attr]
    inner = {kind for owner in _kinds_of(node.value, held) for kind in _of_field(owner, node.attr)}
    is_config = isinstance(node.value, ast.Name | ast.Attribute) and "config" in ast.unparse(node.value)
    return inner | (set(_classes(SECTIONS.get(node.attr))) if is_config else set())


def _of_field(owner: type, name: str) -> Iterator[type]:
    for field in dataclasses.fields(owner):
        if field.name == name:
            yield from _classes(field.type)


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_key_is_read(kind: str, key: str) -> None:
    family = {
        other
        for other, found in BY_NAME.items()
        if issubclass(found, BY_NAME[kind]) or issubclass(BY_NAME[kind], found)
    }
    assert {(other, key) for other in family} & _reads(), f"nothing reads {key} of {kind}"
