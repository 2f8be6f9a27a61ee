"""How an optional part of the project is added to the environment that runs."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
OWN_UV = Path(".uv/bin/uv")  # where the Makefile puts it on a machine that has none


def install_command(extra: str) -> str:
    """Returns the command that works here: from a checkout, by its path; the project is on no package registry."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f'pip install ".[{extra}]" in a clone of the project'
    place = "." if Path.cwd() == CHECKOUT else str(CHECKOUT)
    package = f'"{place}[{extra}]"'
    if find_spec("pip") is not None:
        return f"{shlex.quote(sys.executable)} -m pip install -e {package}"
    own = CHECKOUT / OWN_UV
    uv = shlex.quote(str(own)) if own.exists() else "uv"
    return f"{uv} pip install --python {shlex.quote(sys.executable)} -e {package}"


def missing(what: str, extra: str) -> str:
    """Returns the words of an error about a package that an extra brings."""
    return f"{what} is not installed; install it with: {install_command(extra)}"
