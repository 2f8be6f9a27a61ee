"""A command in a terminal of its own: what it draws there."""

import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def drawn_by(
    words: Sequence[str], *, columns: int = 80, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """What it draws, without control sequences but for carriage returns; it must end well."""
    master, slave = pty.openpty()
    given = {**(environment or os.environ), "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=given)
    os.close(slave)
    drawn = b""
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert process.wait(60) == 0, text[-3000:]
    return text
