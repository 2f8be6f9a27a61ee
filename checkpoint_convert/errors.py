"""The one exception that means "the user can mend this", and what others say, in its words."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong, where, and the mend. Commands exit with code 2 on it."""


def first_line(error: Exception) -> str:
    """What another library's exception says, fit for one line: its first line, cut, without control characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return "".join(sign if sign.isprintable() else "?" for sign in line)
