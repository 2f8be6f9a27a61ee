"""On PYTHONPATH: the first process to change a file whose path holds $PAUSE_AT waits there until $PAUSE_FILE.go exists.

So a test kills, or starts beside, a run that is known to be just there. $PAUSE_FILE holds the process's id.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = os.environ.get("PAUSE_AT")
FILE = os.environ.get("PAUSE_FILE", "")
CHANGES = ("replace", "rename", "fsync")


def pausing(real: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*args: Any, **options: Any) -> Any:
        target = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
        if MARK in str(target):
            wait()
        return real(*args, **options)

    return changed


def wait() -> None:
    try:
        descriptor = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    while not Path(f"{FILE}.go").exists():
        time.sleep(0.01)


if MARK:
    for name in CHANGES:
        setattr(os, name, pausing(getattr(os, name)))
