"""
What parquet files say of their columns in their footers, without a look at any row.

Footers are read in a process of their own: where a column's entry contradicts itself, pyarrow has no way to report it
and ends the process ("terminate called after throwing an instance of 'parquet::ParquetException'").
"""

import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dpop_base.errors import UserError, first_line, printable

_REASON = re.compile(r"^\s*what\(\):\s*(.+)$", re.MULTILINE)  # of a C++ exception that nothing caught


@dataclass(frozen=True)
class ParquetFooter:
    """What is known of each column by its name; the parts of lists and objects count for their column."""

    rows: int
    size_bytes: dict[str, int]  # without compression
    filled_rows: dict[str, int]  # not null; of lists and objects, all rows of a row group that has anything in them
    binary: list[str]  # that hold bytes which are not declared to be text


def parquet_footers(paths: Sequence[Path]) -> list[ParquetFooter]:
    """One footer a file; UserError names the first file that has none, or one that contradicts itself."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=b"\0".join(os.fsencode(path) for path in paths),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the same modules as here
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    footers = [ParquetFooter(**answer) for answer in answers if "error" not in answer]
    if len(footers) == len(paths):
        return footers
    reason = answers[-1]["error"] if len(answers) > len(footers) else _last_words(done.stderr)
    raise not_whole(paths[len(footers)], reason)


def not_whole(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not a whole parquet file ({reason}); write it again")


def _last_words(stderr: bytes) -> str:
    text = stderr.decode(errors="replace").strip()
    found = _REASON.search(text)
    return printable(found[1] if found else text.rpartition("\n")[2])


def _footer(path: Path) -> ParquetFooter:
    with pyarrow.parquet.ParquetFile(path) as file:
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        texts = {leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"}
        columns = {leaf.path: _column(leaf.path, file.schema_arrow.names) for leaf in leaves}
        sizes, filled, binary = Counter[str](), Counter[str](), set[str]()
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            found: Counter[str] = Counter()
            for leaf in (group.column(number) for number in range(group.num_columns)):
                name = columns[leaf.path_in_schema]
                sizes[name] += leaf.total_uncompressed_size
                found[name] = max(found[name], _filled_rows(leaf, group.num_rows, is_part=name != leaf.path_in_schema))
                if leaf.physical_type == "BYTE_ARRAY" and leaf.path_in_schema not in texts:
                    binary.add(name)
            filled.update(found)
        return ParquetFooter(file.metadata.num_rows, dict(sizes), dict(filled), sorted(binary))


def _column(leaf_path: str, names: Sequence[str]) -> str:
    """The column that a leaf belongs to; both may have dots in their names."""
    return max((name for name in names if f"{leaf_path}.".startswith(f"{name}.")), key=len)


def _filled_rows(leaf: Any, rows: int, is_part: bool) -> int:
    """Counts the rows that are not null; of a part of a list or object, it is only known whether there is any."""
    known = leaf.statistics is not None and leaf.statistics.has_null_count
    nulls = leaf.statistics.null_count if known else 0
    return rows * (nulls < leaf.num_values) if is_part else rows - nulls


def _answers(names: bytes) -> Iterator[dict[str, Any]]:
    """A footer for each name, until one cannot be read."""
    for name in names.split(b"\0"):
        try:
            yield asdict(_footer(Path(os.fsdecode(name))))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            yield {"error": first_line(error)}
            return


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an end is expected, and nobody needs a core file of it
    for answer in _answers(sys.stdin.buffer.read()):
        print(json.dumps(answer), flush=True)
