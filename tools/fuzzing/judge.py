"""One input through one command, in this process, and what was wrong with the answer."""

import contextlib
import io
import resource
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from checkpoint_convert import commands as converter
from fuzzing.kind import Kind
from megatron_dpop.commands import main as trainer

SECONDS = 10.0  # of this process's own time: what else the machine does is not the input's fault
MEMORY_BYTES = 3 << 30  # above what the process has before its first input
GOOD = (0, 2)
_COMMANDS: dict[str, Callable[[list[str]], int]] = {"megatron-dpop": trainer.run, "checkpoint-convert": converter.run}


def limit_memory() -> None:
    """What an input may take is then an error in this process and not the machine's trouble."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def judge(kind: Kind, seed: int, number: int, work: Path) -> tuple[str, str]:
    """(what is wrong, or "", and the command's words with its output), for the input of that seed and number."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command, words = kind.attempt(Random(f"{seed}/{kind.name}/{number}"), work)
    before = {path.relative_to(work) for path in work.rglob("*")}
    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    wrong, code = "", 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _COMMANDS[command](words)
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        wrong = f"{type(error).__name__} left the command"
        err.write("".join(traceback.format_exception(error)[-20:]))
    seconds = time.process_time() - began
    left = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.relative_to(work) not in before)
    wrong = wrong or _verdict(code, err.getvalue(), seconds, left)
    return wrong, f"{command} {' '.join(map(repr, words))}\n{err.getvalue()[-3000:]}"


def _verdict(code: int, errors: str, seconds: float, left: list[str]) -> str:
    if "Traceback (most recent call last)" in errors:
        return "a traceback"
    if code not in GOOD:
        return f"exit code {code}"
    if seconds > SECONDS:
        return f"{seconds:.0f} seconds"
    said = [line for line in errors.splitlines() if line.startswith(("megatron-dpop: ", "checkpoint-convert: "))]
    if code == 2 and len(said) != 1 and not any("usage:" in line for line in errors.splitlines()):
        return f"{len(said)} lines of error"
    if any(len(line) > 1500 for line in said):
        return "an error longer than a screen"
    if code == 2 and (half := [name for name in left if _is_half_written(name)]):
        return f"left behind: {half}"
    return ""


def _is_half_written(name: str) -> bool:
    """A temporary file, or one that says that everything else is there."""
    return name.endswith((".tmp", "out.html", "conversion-manifest.json", "metrics.jsonl"))
