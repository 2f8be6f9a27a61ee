"""Formats of training data, recognised from a file's columns."""

from .fields import Notes, RowFields
from .layout import Layout, recognise
from .table import TABLE, Format

__all__ = ["TABLE", "Format", "Layout", "Notes", "RowFields", "recognise"]
