"""Parts of a page that are computed: each stands between two comments that name it."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dpop_base.files import write_text
from examples.arithmetic.results import Line, Results


def results_to_show(description: str, committed: Results, names: Iterable[str]) -> Results:
    """The committed results; `--results FILE` on the command line first puts that file's lines of `names` there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="take the committed results from this file first")
    given = parser.parse_args()
    if given.results:
        Results(given.results).keep(names, committed.path)
    return committed


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The page with each block in its place; a block without a place is an error."""
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
        found = place.search(text)
        if found is None:
            raise ValueError(f"the page has no place for {name}")
        text = f"{text[: found.start()]}{found[1]}\n{block}\n\n{found[2]}{text[found.end() :]}"
    return text


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    write_text(page, filled(page.read_text(encoding="utf-8"), blocks))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def said_of_done(done: int, wanted: int) -> str:
    if done == wanted:
        return f"All {wanted} trials are in these results."
    return (
        f"**{done} of {wanted} trials are in these results**; the command goes on with the rest where they are missing."
    )


def said_of_time(lines: Sequence[Line], wanted: int) -> str:
    """What all trials take, by those that say what one took."""
    times = [line["cpu_seconds"] for line in lines if "cpu_seconds" in line]
    if not times:
        return "How long a trial takes was not measured yet."
    each = sum(times) / len(times)
    return (
        f"A trial takes {each:.0f} s of one core's time (the mean of {len(times)} that were timed so), and so all "
        f"{wanted} about {wanted * each / 2 / 60:.0f} minutes of two cores."
    )
