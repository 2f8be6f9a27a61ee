"""The one exception that means "the user can fix this", and what others say, in its words."""

import io
import sys

LONGEST = 1200  # characters of an error: what a file holds may be quoted in it


class UserError(ValueError):
    """Bad input: one line that names what is wrong, where, and the fix. Commands exit with code 2 on it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Drops control characters, and the middle of what is longer than anybody reads."""
    line = "".join(sign if sign.isprintable() else "?" for sign in message)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 205]} ... {line[-200:]}"


def first_line(error: Exception) -> str:
    """What another library's exception says, fit for one line: its first line, cut, without control characters."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str) -> str:
    """What an untrusted file writes, fit for a line: cut, without control characters and lone surrogates."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:200])


def escape_what_output_lacks() -> None:
    """Has standard output write an escape for a sign that its encoding lacks, as standard error does, and not fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
