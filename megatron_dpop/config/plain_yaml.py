"""YAML as plain data, in bounded time: what a config, or a run's copy of one, may hold."""

from typing import Any

import yaml

LARGEST_CHARACTERS = 128 << 10
MOST_VALUES = 20_000  # aliases counted each time that they are used: ten lines can stand for billions of values
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Dates stay text: no key takes one, and YAML's own reader raises for the 45th of a month."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """
    Mappings with text for keys, lists, text, numbers, truth values and null. Raises ValueError with one line that
    says what else was there.
    """
    if len(text) > LARGEST_CHARACTERS:
        raise ValueError(f"it is longer than {LARGEST_CHARACTERS} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, set())
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError("it is no YAML" + (f": {_place(text, mark.line, mark.column)}" if mark else "")) from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise ValueError(str(error).splitlines()[0][:200] if str(error) else "it cannot be read") from None
    _check(value)
    return value


def _place(text: str, line: int, column: int) -> str:
    """Where YAML stopped, and why if it was a tab or a sign of its own within braces."""
    lines = text.splitlines()
    for at in (line, line - 1):  # where it stopped, or the line that it then still was in
        if 0 <= at < len(lines) and "\t" in lines[at][: len(lines[at]) - len(lines[at].lstrip())]:
            return f"line {at + 1} is indented by a tab, YAML takes spaces alone"
    inside = lines[line][:column] if line < len(lines) else ""
    quotes = ", where a text with ? or : or , needs quotes" if inside.count("{") > inside.count("}") else ""
    return f"see line {line + 1}, near column {column + 1}{quotes}"


def _count(node: yaml.Node, known: dict[int, int], within: set[int]) -> int:
    """How many values a node stands for."""
    if id(node) in within:
        raise ValueError("it holds a part that contains itself")
    if len(within) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_once(node)
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        within.add(id(node))
        known[id(node)] = 1 + sum(_count(part, known, within) for part in inside)
        within.remove(id(node))
        if known[id(node)] > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values")
    return known[id(node)]


def _check_once(mapping: yaml.MappingNode) -> None:
    """YAML's own reader would keep the last of equal keys, and drop what stands under the others."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            places = f"in lines {lines[key.value]} and {line}" if line != lines[key.value] else f"in line {line}"
            raise ValueError(f"`{key.value[:40]}` stands twice, {places}; write it once")
        lines[key.value] = line


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f"it has a key {key!r:.40} that is no text")
            _check(key)
            _check(part)
    elif isinstance(value, list):
        for part in value:
            _check(part)
    elif isinstance(value, str):
        if bad := [sign for sign in value if sign == "\0" or "\ud800" <= sign <= "\udfff"]:
            raise ValueError(f"it holds text with the character {bad[0]!r}, which neither files nor data can hold")
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise ValueError("it holds a whole number beyond 64 bits")
    elif value is not None and not isinstance(value, float):
        raise ValueError(f"it holds a value of the kind {type(value).__name__}, which no key takes")
