"""A source opened: its format recognised, its rows as fields, and an account of what is not used of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpop_base.errors import printable

from .files.rows import Location, Rows, find_rows, sample
from .formats import Layout, Notes, RowFields, recognise
from .formats.fields import is_empty
from .formats.ranked import grouped
from .records import BadRowError, Record, located

Entry = tuple[str, dict[str, Any]]  # where, and the values by role


@dataclass
class Reading:
    """One source. `unused` grows while `entries` are read: column -> rows in which it holds something."""

    location: Location
    rows: Rows
    layout: Layout
    unused: Counter[str] = field(default_factory=Counter)

    def entries(self) -> Iterator[Entry]:
        self.unused.clear()
        rows = self._by_role()
        yield from grouped(rows) if self.layout.form.grouped else rows

    def _by_role(self) -> Iterator[Entry]:
        roles = {column: role for role, column in self.layout.columns.items()}
        self.unused.update({f"the file {name}": 0 for name in self.rows.unused_files})
        for where, row in self.rows.read(roles.keys()):
            values = {}
            for column, value in row.items():
                role = roles.get(column)
                if role is not None:
                    values[role] = value
                elif not is_empty(value):
                    self.unused[column] += 1
            yield where, values
        self.unused.update(self.rows.filled_beside(roles.keys()))


def open_source(location: Location, columns: Mapping[str, str] | None = None) -> Reading:
    """UserError where the source is not there, or of no known format."""
    rows = find_rows(location)
    first = sample(rows)
    try:
        layout = recognise([row for _, row in first], columns)
    except BadRowError as problem:
        raise located(location, first[0][0], problem) from None
    return Reading(location, rows, layout)


def records_of(layout: Layout, values: Mapping[str, Any], notes: Notes) -> list[Record]:
    """The records of one row; BadRowError where it is wrong."""
    return layout.form.records(RowFields(values, layout.columns), notes)


def unused_lines(unused: Mapping[str, int]) -> list[str]:
    """One line that names what a source holds and nothing uses."""
    if not unused:
        return []
    parts = [
        (printable(name) or "the column without a name") + (f" ({count} row{'s' * (count != 1)})" if count else "")
        for name, count in sorted(unused.items())
    ]
    return ["not used: " + ", ".join(parts)]
