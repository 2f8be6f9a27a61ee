"""How a process ends: its exit code, and the one line that says why."""

import json
import os
import sys
import time

FAILED = 1  # starting again may help
BAD_INPUT = 2  # starting again cannot help until what the line names is mended
UNHEALTHY = 3  # the health monitor saw what `logging.stop_on` names, all saved: a person must look at it first
STOPPED = 75  # asked to by a signal, all saved: start again to go on (`EX_TEMPFAIL` of sysexits.h)

# Set in ranks whose launcher prints their error, once for all of them.
LAUNCHED_VARIABLE = "MEGATRON_DPOP_LAUNCHED"
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def report(kind: str, message: str) -> None:
    """To the launcher's file where one rank of several ends, so that it is printed once; else to standard error."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        details = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))}}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": details}, file)
    if not path or LAUNCHED_VARIABLE not in os.environ:
        print(f"megatron-dpop: {kind}: {message}", file=sys.stderr)
