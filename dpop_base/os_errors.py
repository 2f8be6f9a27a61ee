"""What the operating system refuses, as one line that says how to fix it: the user's to clear, no restart can."""

import errno
import os
import re

_RIGHTS = "give this user the right to it, or choose another place"
_PLACE = "choose another place"
_ROOM = "make room and start again"
_MISSING = "create it, or choose another place"

FIXES = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "it is on a file system that cannot be written; choose another place",
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: _PLACE,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: _PLACE,
    errno.EEXIST: _PLACE,
    errno.ENOENT: _MISSING,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "this file system, or a limit (`ulimit -f`), allows no file so large",
}

# Libraries written in Rust (safetensors, tokenizers) tell it in words.
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


def explain_os_error(error: BaseException) -> str | None:
    """One line, or None where the error is none of these: a disk that fails, a connection, a fault of ours."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (words := _IN_WORDS.search(str(error))):
        number = int(words.group(1))
    if number is None or number not in FIXES:
        return None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    where = _readable(name) if name is not None else "a file"
    cache = "; it is in a cache, whose place XDG_CACHE_HOME names" if "/.cache/" in where else ""
    return f"{where}: {os.strerror(number)}; {FIXES[number]}{cache}"


def _readable(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else f"file descriptor {name}"
    return "".join(sign if sign.isprintable() else "?" for sign in text)
