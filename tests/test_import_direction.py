"""Imports point one way: data flows from config to commands, and what is pure stays free of Megatron."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part may import of the project, besides itself.
CONVERTER = {"checkpoint_convert", "dpop_base"}
BASE = CONVERTER | {"megatron_dpop.config"}
ALLOWED = {
    "megatron_dpop.config": CONVERTER,
    "megatron_dpop.data": BASE,
    "megatron_dpop.rows": BASE | {"megatron_dpop.data"},
    "megatron_dpop.plan": BASE | {"megatron_dpop.rows"},
    "megatron_dpop.kernels": set(),
    "megatron_dpop.logprobs": BASE | {"megatron_dpop.kernels"},
    "megatron_dpop.losses": BASE,
    "megatron_dpop.runtime": BASE,
    "megatron_dpop.models": BASE
    | {"megatron_dpop.rows", "megatron_dpop.kernels", "megatron_dpop.logprobs", "megatron_dpop.runtime"},
    "megatron_dpop.health": BASE,
    "megatron_dpop.pages": CONVERTER,
    "megatron_dpop.report": BASE | {"megatron_dpop.health", "megatron_dpop.pages"},
    "megatron_dpop.evaluation": BASE | {"megatron_dpop.data"},
}
WITHOUT_TORCH = (
    "megatron_dpop.config",
    "megatron_dpop.plan",
    "megatron_dpop.health",
    "megatron_dpop.pages",
    "megatron_dpop.report",
)
WITHOUT_MEGATRON = (
    "megatron_dpop.kernels",
    "megatron_dpop.data",
    "megatron_dpop.rows",
    "megatron_dpop.logprobs",
    "megatron_dpop.losses",
)


def _imports(package: str) -> set[tuple[str, str]]:
    """(file, module) of every absolute and relative import in a package."""
    found = set()
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(str(path), alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(here.split(".")[: -node.level]) if node.level else ""
                found.add((str(path), ".".join(filter(None, (above, node.module)))))
    return found


def _part(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in CONVERTER:
        return parts[0]
    return ".".join(parts[:2]) if parts[0] == "megatron_dpop" else None


@pytest.mark.parametrize("package", ALLOWED)
def test_part_imports_only_what_stands_below_it(package: str) -> None:
    wrong = {
        (file, module)
        for file, module in _imports(package)
        if (part := _part(module)) is not None and part not in ALLOWED[package] | {package, "megatron_dpop"}
    }
    assert not wrong


def test_the_converter_imports_nothing_of_training() -> None:
    assert not {entry for entry in _imports("checkpoint_convert") if entry[1].startswith("megatron_dpop")}


def test_the_base_imports_nothing_of_the_project() -> None:
    assert not {entry for entry in _imports("dpop_base") if _part(entry[1]) not in (None, "dpop_base")}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_plain_data_needs_no_torch(package: str) -> None:
    assert not {entry for entry in _imports(package) if entry[1].split(".")[0] in ("torch", "megatron")}


@pytest.mark.parametrize("package", WITHOUT_MEGATRON)
def test_tensor_code_needs_no_megatron(package: str) -> None:
    assert not {entry for entry in _imports(package) if entry[1].split(".")[0] == "megatron"}
