"""What a run is doing, in one small file for whoever watches it: a person, a job script, a monitor."""

import contextlib
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dpop_base.files import write_json
from dpop_base.run_names import HEARTBEAT
from megatron_dpop.runtime import exits

SECONDS_BETWEEN = 5.0

State = Literal["starting", "reference", "training", "exporting", "stopped", "unhealthy", "finished", "failed"]
# A launcher adds "interrupted": ended at once by a second Ctrl-C.


class Heartbeat:
    """Writes `heartbeat.json` at every change of state, and while steps go on, at most every few seconds.

    `saved` names what a restart would go on from. It changes exactly when a restart would begin further on, so that
    a job script can tell a run that gets nowhere.
    """

    def __init__(self, folder: Path, *, silent: bool) -> None:
        self._path = folder / HEARTBEAT
        self._silent = silent
        self._written = 0.0
        self._values: dict[str, Any] = {"state": "starting", "saved": None}
        if not silent:
            exits.tell_launcher("heartbeat", str(self._path.absolute()))

    def beat(self, state: State, *, saved: str | None = None, **values: int | str) -> None:
        """`saved` and `values` (step, steps, error) stay as they were where they are not given."""
        news = state != self._values["state"] or saved not in (None, self._values["saved"])
        self._values |= {"state": state, **({"saved": saved} if saved else {}), **values}
        if news or time.monotonic() - self._written > SECONDS_BETWEEN:
            self._write()

    def _write(self) -> None:
        if self._silent:
            return
        self._written = time.monotonic()
        values = {
            **self._values,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        }
        with contextlib.suppress(OSError):  # what is watched does not fail because watching does
            write_json(self._path, values)
