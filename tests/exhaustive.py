"""Divides a long table of cases: CI runs a few of each kind, `make test-exhaustive` the others."""

from collections.abc import Iterable
from typing import Any

import pytest

EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


def in_ci(*chosen: object, of: Iterable[object]) -> list[Any]:
    """Returns the cases as parameters of a test, all but the chosen ones marked `exhaustive`."""
    cases = list(of)
    assert set(chosen) <= set(cases), f"{set(chosen) - set(cases)} is not among {cases}"
    return [case if case in chosen else pytest.param(case, marks=EXHAUSTIVE) for case in cases]
