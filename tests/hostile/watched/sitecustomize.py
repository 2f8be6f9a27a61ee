"""Put first on PYTHONPATH: every process, ranks included, writes down what touches the canary that payloads go for."""

import os
import sys
from types import CodeType
from typing import Any

CANARY = os.environ.get("HOSTILE_CANARY")
LOG = os.environ.get("HOSTILE_LOG")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.putenv":  # libraries that keep and restore the environment set our own variables again
        return
    if CANARY and LOG and any(CANARY in part for part in map(_text, arguments)):
        descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{event} {arguments!r}\n".encode())
        os.close(descriptor)


def _text(argument: Any) -> str:
    """Only of what is cheap to look into: a hook sees every call."""
    if isinstance(argument, str):
        return argument
    if isinstance(argument, bytes):
        return argument.decode("latin-1")
    if isinstance(argument, list | tuple) and len(argument) < 50:
        return " ".join(map(_text, argument))
    return repr(argument.co_consts) if type(argument) is CodeType else ""


if CANARY and LOG:
    sys.addaudithook(watch)
