"""Numbers and settings as a reader expects them: a true minus sign, units, no noise digits."""

import json
import math
import shlex
from typing import Any

from megatron_dpop.report.catalogue import Style

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, *, style: Style = "number", signed: bool = False) -> str:
    """`signed` writes a plus sign before a positive number."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    text = {"number": _plain, "percent": _percent, "bytes": _bytes}[style](abs(value))
    if not any(digit in text for digit in "123456789"):
        return text  # rounds to zero: neither side of it
    return (MINUS if value < 0 else "+" if signed else "") + text


def _plain(value: float) -> str:
    if value == 0:
        return "0"
    if value < 1e-3 or value >= 1e7:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("e-", f"e{MINUS}")
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value >= 100 and value == int(value) else 1 if value >= 100 else 2 if value >= 0.1 else 4}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def _bytes(value: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,.0f} B"


def setting(value: Any) -> str:
    """A value of a config or an environment, as YAML would show it; of a command each option on a line of its own."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return shlex.join(value).replace(" --", "\n--")
    return json.dumps(value, ensure_ascii=False, default=str)
