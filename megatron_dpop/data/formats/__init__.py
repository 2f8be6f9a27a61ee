"""Formats of training data, recognised from a file's columns."""

from .fields import Fields, Notes
from .layout import Layout, recognise
from .table import TABLE, Format

__all__ = ["TABLE", "Fields", "Format", "Layout", "Notes", "recognise"]
