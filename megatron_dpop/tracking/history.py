"""The lines of metrics.jsonl: how they are added, and which of them a run that goes on keeps.

Beside them stands a checksum of each, in a file of its own, so that a digit which changes on the disk is noticed.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpop_base.checksums import crc32
from dpop_base.files import write_bytes
from megatron_dpop.tracking.run_folder import append_text

REJECTED = "metrics.rejected.jsonl"
CHECKSUMS = "metrics.crc32"  # a line for each: its step and the CRC-32 of its bytes
_CHECKSUM = re.compile(r"([0-9]{1,18}) ([0-9a-f]{8})")
NAMED_STEPS = 5


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line of metrics, then its checksum. Raises OSError, which names the file."""
    text = json.dumps(line)
    append_text(path, text + "\n")
    append_text(path.with_name(CHECKSUMS), f"{line['step']} {crc32(text.encode()):08x}\n")


def keep_history(path: Path, before_step: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Leaves in the file the lines before `before_step`, which it returns: the others are written again.

    A line that is no line of metrics (a disk's fault, two writers, an editor's slip) is moved to a file beside it, and
    said. So is a line that has changed or is missing, of which nothing is moved. What a killed run was writing is its
    file's end without an end of line, of a step that is taken again.
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
    _compare({line["step"]: crc32(text) for line, text in zip(lines, kept, strict=True)}, path, before_step, say)
    write_bytes(path, b"".join(text + b"\n" for text in kept))
    return lines


def _compare(found: dict[int, int], path: Path, before_step: int, say: Callable[[str], None]) -> None:
    """Says which lines are not as they were written, and leaves the checksums of the steps before `before_step`."""
    checksums = path.with_name(CHECKSUMS)
    if not checksums.exists():  # of a run that an older version began
        return
    parsed = map(_CHECKSUM.fullmatch, checksums.read_text(encoding="utf-8", errors="replace").splitlines())
    written = {int(one[1]): int(one[2], 16) for one in parsed if one and int(one[1]) < before_step}
    changed = [step for step in written if found.get(step, written[step]) != written[step]]
    missing = [step for step in written if step not in found]
    if changed:
        say(f"warning: {path}: {_of_steps(changed)} not as written any more (the disk's fault, or a hand's); kept so")
    if missing:
        say(f"warning: {path}: {_of_steps(missing)} missing")
    write_bytes(checksums, "".join(f"{step} {value:08x}\n" for step, value in written.items()).encode())


def _of_steps(steps: Sequence[int]) -> str:
    """The subject of a sentence, with its verb."""
    if len(steps) == 1:
        return f"the line of step {steps[0]} is"
    more = f" and {len(steps) - NAMED_STEPS} more" if len(steps) > NAMED_STEPS else ""
    return f"the lines of steps {', '.join(map(str, steps[:NAMED_STEPS]))}{more} are"


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of metrics: an object of numbers, one of them the step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 0:
        return None
    return line if all(isinstance(value, int | float) for value in line.values()) else None
