"""The documents' tables name what the code has, no more and no less: a table that is forgotten is a failed test."""

import re
from typing import get_args

import benchmark
import pytest
from reference_pages.commands_page import parsers

from dpop_base.architectures.families import FAMILIES
from megatron_dpop.config.schema import RuleName
from megatron_dpop.data.formats import TABLE
from megatron_dpop.health.rules import RULES
from megatron_dpop.losses.registry import REGISTRY
from tests.documents.commands import ROOT

DOCS = ROOT / "docs"


def first_cells(document: str, heading: str) -> list[str]:
    """First column of the first table under a heading, without its own head."""
    text = (DOCS / document).read_text(encoding="utf-8")
    below = text[f"\n{text}".index(f"\n{heading}\n") :]
    table = re.search(r"(?:^\|[^\n]*\n)+", below, re.MULTILINE)
    assert table is not None, f"{document} has no table under {heading}"
    return [line.split("|")[1].strip() for line in table[0].splitlines()[2:]]


def quoted(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`([\w.-]+)", cell)]


def test_losses() -> None:
    assert sorted(quoted(first_cells("losses.md", "## The losses"))) == sorted(REGISTRY)


def test_families() -> None:
    assert sorted(quoted(first_cells("conversion.md", "## Families"))) == sorted(FAMILIES)


def test_formats() -> None:
    parts = [part for cell in first_cells("data.md", "### Formats") for part in cell.split(", ")]
    assert {name for part in parts for name in _alternatives(part)} == {form.name for form in TABLE}


def _alternatives(part: str) -> list[str]:
    """Two names of "completions with scores or ranks"."""
    both = re.fullmatch(r"(.*) (\w+) or (\w+)", part)
    return [f"{both[1]} {both[2]}", f"{both[1]} {both[3]}"] if both else [part]


def test_health_rules() -> None:
    names = list(get_args(RuleName))
    assert quoted(first_cells("monitoring.md", "## The health monitor")) == names
    assert [rule.name for rule in RULES] == names


def test_scripts() -> None:
    folder = ROOT / "examples" / "slurm"
    scripts = {path.name for path in folder.iterdir() if path.suffix == ".sbatch"} | {"pipeline.sh"}
    assert set(quoted(first_cells("cluster.md", "# On a SLURM cluster"))) == scripts


def test_containers() -> None:
    folders = (ROOT / "docker", ROOT / "examples" / "kubernetes", ROOT / "examples" / "skypilot")
    files = {str(path.relative_to(ROOT)) for folder in folders for path in folder.iterdir()}
    cells = first_cells("containers.md", "# Containers, Kubernetes and clouds")
    assert {cell.strip("`") for cell in cells} == files


def test_recipes() -> None:
    recipes = {path.stem for path in (ROOT / "examples" / "recipes").glob("*.yaml")}
    assert set(quoted(first_cells("cluster.md", "## Recipes"))) == recipes


def test_benchmarks() -> None:
    shown = re.findall(r"tools/benchmark\.py (\w+)", (DOCS / "performance.md").read_text())
    assert set(shown) == {module.__name__.split(".")[-1] for module in benchmark.BENCHMARKS}


@pytest.mark.parametrize("prog", parsers())
def test_every_command_has_a_section(prog: str) -> None:
    assert f"\n## {prog}\n" in (DOCS / "reference" / "commands.md").read_text()
