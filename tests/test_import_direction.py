"""Imports point one way, as docs/architecture.md lists the packages, and what is pure stays free of Megatron."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTSIDE = ("dpop_base", "checkpoint_convert")  # packages of their own, below megatron_dpop

WITHOUT_TORCH = ("dpop_base", *(f"megatron_dpop.{name}" for name in ("config", "plan", "health", "pages", "report")))
WITHOUT_MEGATRON = (
    *("dpop_base", "checkpoint_convert"),
    *(f"megatron_dpop.{name}" for name in ("kernels", "data", "rows", "logprobs", "losses", "config", "plan")),
)


def _drawn() -> list[str]:
    """Packages in the order of that list, from what stands alone to what stands on all others."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"```\ndpop_base/.*?```", text, re.DOTALL)
    assert block is not None
    lines = (re.match(r"(  )?(\w+)/ ", line) for line in block[0].splitlines())
    names = (f"megatron_dpop.{found[2]}" if found[1] else found[2] for found in lines if found)
    return [name for name in names if name in _packages()]


@cache
def _packages() -> tuple[str, ...]:
    inner = sorted(path.parent.name for path in (ROOT / "megatron_dpop").glob("*/__init__.py"))
    return (*OUTSIDE, *(f"megatron_dpop.{name}" for name in inner))


@cache
def _imports(package: str) -> frozenset[tuple[str, str]]:
    """(file, module) of every import of a package's files, inside functions too; `from a import b` gives a and a.b."""
    found = set()
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(str(path.relative_to(ROOT)), alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(here.split(".")[: -node.level]) if node.level else ""
                module = ".".join(filter(None, (above, node.module)))
                found |= {(str(path.relative_to(ROOT)), name) for name in (module, *_members(module, node))}
    return frozenset(found)


def _members(module: str, node: ast.ImportFrom) -> list[str]:
    return [f"{module}.{alias.name}" for alias in node.names] if module == "megatron_dpop" else []


def _package_of(module: str) -> str | None:
    return next((name for name in _packages() if f"{module}.".startswith(f"{name}.")), None)


def test_every_package_is_drawn_once() -> None:
    assert sorted(_drawn()) == sorted(_packages())


@pytest.mark.parametrize("package", _packages())
def test_a_package_imports_only_what_stands_above_it_in_the_list(package: str) -> None:
    order = _drawn()
    below = set(order[order.index(package) :]) - {package}
    assert not {(file, module) for file, module in _imports(package) if _package_of(module) in below}


@pytest.mark.parametrize("package", OUTSIDE)
def test_the_converter_and_the_base_know_nothing_of_training(package: str) -> None:
    assert not {entry for entry in _imports(package) if entry[1].startswith("megatron_dpop")}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_plain_data_needs_no_torch(package: str) -> None:
    assert not {entry for entry in _imports(package) if entry[1].split(".")[0] in ("torch", "megatron")}


@pytest.mark.parametrize("package", WITHOUT_MEGATRON)
def test_what_builds_no_model_needs_no_megatron(package: str) -> None:
    assert not {entry for entry in _imports(package) if entry[1].split(".")[0] == "megatron"}
