"""The lines of metrics.jsonl that a run which goes on keeps, and those that it cannot use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpop_base.files import write_bytes

REJECTED = "metrics.rejected.jsonl"


def keep_history(path: Path, before_step: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Leaves in the file the lines before `before_step`, which it returns: the others are written again.

    A line that is no line of metrics (a disk's fault, two writers, an editor's slip) is moved to a file beside it, and
    said. What a killed run was writing is its file's end without an end of line, of a step that is taken again.
    """
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")[:-1]
    kept: list[bytes] = []
    lines: list[dict[str, Any]] = []
    rejected: list[bytes] = []
    last_step = -1
    for text in texts:
        line = _parsed(text)
        if line is None or line["step"] <= last_step:
            rejected.append(text)
            continue
        last_step = line["step"]
        if line["step"] < before_step:
            kept.append(text)
            lines.append(line)
    if rejected:
        with path.with_name(REJECTED).open("ab") as file:
            file.write(b"".join(text + b"\n" for text in rejected))
        count = f"{len(rejected)} line{'s' if len(rejected) > 1 else ''}"
        say(f"{path}: {count} that cannot be used moved to {REJECTED}; all others are kept")
    write_bytes(path, b"".join(text + b"\n" for text in kept))
    return lines


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of metrics: an object of numbers, one of them the step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 0:
        return None
    return line if all(isinstance(value, int | float) for value in line.values()) else None
