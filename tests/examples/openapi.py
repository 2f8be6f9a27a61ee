"""Checks a Kubernetes object against a schema as its API server does, unknown fields included."""

import re
from collections.abc import Iterator
from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def faults(value: Any, schema: dict[str, Any], place: str = "") -> Iterator[str]:
    """Says what the server would refuse, each with its place: `spec.replicatedJobs[0].name`."""
    if schema.get("x-kubernetes-int-or-string"):
        expected: tuple[type, ...] = (int, str)
    else:
        expected = (TYPES[schema["type"]],)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        yield f"{place}: {value!r} is no {schema.get('type', 'number or string')}"
    elif isinstance(value, dict):
        yield from _of_object(value, schema, place)
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield f"{place}: has {len(value)} items"
        for at, item in enumerate(value):
            yield from faults(item, schema["items"], f"{place}[{at}]")
    elif value not in schema.get("enum", [value]):
        yield f"{place}: {value!r} is none of {schema['enum']}"
    elif isinstance(value, int) and value < schema.get("minimum", value):
        yield f"{place}: {value} is below {schema['minimum']}"
    elif not re.search(schema.get("pattern", ""), str(value)):
        yield f"{place}: {value!r} is not of the form {schema['pattern']}"


def _of_object(value: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}.{name}: is missing"
    known, others = schema.get("properties"), schema.get("additionalProperties")
    for name, inner in value.items():
        if known is not None and name in known:
            yield from faults(inner, known[name], f"{place}.{name}".lstrip("."))
        elif others is not None:
            yield from faults(inner, others, f"{place}.{name}")
        elif known is not None:  # an object without either, as metadata, takes anything
            yield f"{place}.{name}: unknown".lstrip(".")
