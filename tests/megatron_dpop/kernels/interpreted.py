"""Marks tests that need Triton's interpreter, which a process has from its start or not at all."""

import os

import pytest

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_in_interpreter.py, with TRITON_INTERPRET=1"
)
