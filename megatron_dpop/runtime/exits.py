"""How a process ends: its exit code, and the one line that says why. No torch here."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal

from dpop_base.errors import one_line

FAILED = 1  # starting again may help
BAD_INPUT = 2  # starting again cannot help until what the line names is fixed
UNHEALTHY = 3  # the health monitor saw what `logging.stop_on` names, all saved: a person must look at it first
STOPPED = 75  # asked to by a signal, all saved: start again to go on (`EX_TEMPFAIL` of sysexits.h)

# The file, opened to append, in which ranks tell their launcher why they end: it prints that once for all of them.
WORDS_VARIABLE = "MEGATRON_DPOP_WORDS_FD"
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"  # the same of torchrun

Kind = Literal["error", "unhealthy", "failed", "lost", "heartbeat"]


@dataclass(frozen=True)
class Word:
    """What a rank says to its launcher: why it ends, or (`heartbeat`) which file tells others what it is doing."""

    rank: int
    kind: Kind
    message: str


def report(kind: Literal["error", "unhealthy", "failed", "lost"], message: str) -> None:
    """Reports to the launcher where one rank of several ends, so that it is printed once; else to standard error.

    `lost`: this rank fails because another one has; whatever that one says is the reason.
    """
    if tell_launcher(kind, message):
        return
    message = one_line(message)
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        details = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))}}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": details}, file)
    print(f"megatron-dpop: {'failed' if kind == 'lost' else kind}: {message}", file=sys.stderr, flush=True)


def tell_launcher(kind: Kind, message: str) -> bool:
    """False where no launcher of ours listens."""
    words = os.environ.get(WORDS_VARIABLE)
    if not words:
        return False
    word = Word(int(os.environ.get("RANK", "0")), kind, message)
    try:
        os.write(int(words), json.dumps(asdict(word)).encode() + b"\n")
    except (OSError, ValueError):
        return False
    return True


def read_words(text: bytes) -> list[Word]:
    """What ranks have said, in the order in which they did."""
    return [Word(**json.loads(line)) for line in text.splitlines()]
