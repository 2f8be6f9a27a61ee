"""What a recipe of CONTRIBUTING.md asks for and no other test would miss: each fails where one step is forgotten."""

import ast
import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import benchmark
import pytest

from dpop_base.architectures.families import FAMILIES
from megatron_dpop.config.layout import ModelLayout
from megatron_dpop.config.schema import ParallelConfig, RuleName
from megatron_dpop.losses.registry import REGISTRY
from megatron_dpop.plan.from_config import SINGLE_COMPLETION
from tests.checkpoint_convert.models import CONFIGS
from tests.documents.commands import ROOT

COMMANDS = ROOT / "megatron_dpop" / "commands"
SCRIPTS = ROOT / "examples" / "slurm"


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _strings(paths: Iterable[Path]) -> set[str]:
    """Every string that these files hold, docstrings left out."""
    nodes = [node for path in paths for node in ast.walk(_tree(path))]
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }


def _files_with_register(folder: Path) -> set[str]:
    return {
        path.stem
        for path in folder.glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "register" for node in _tree(path).body)
    }


def test_a_loss_of_single_completions_is_planned_as_one() -> None:
    assert {name for name, loss in REGISTRY.items() if loss.kind in ("single", "sft")} == set(SINGLE_COMPLETION)


def test_every_family_has_a_small_model() -> None:
    """Qwen1's is written by the tests: transformers has no class of it."""
    assert {make().model_type for make in CONFIGS.values()} | {"qwen"} == set(FAMILIES)


def test_every_command_file_is_registered() -> None:
    called = {
        node.func.value.id
        for path in COMMANDS.glob("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "register"
        and isinstance(node.func.value, ast.Name)
    }
    assert _files_with_register(COMMANDS) == called


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_every_script_runs_as_a_job(script: str) -> None:
    """A test gives it to SLURM, or a script that a test gives to SLURM submits it."""
    folder = ROOT / "tests" / "slurm"
    tests = set(folder.glob("test_*.py")) - {folder / "test_scripts.py", folder / "test_refusals.py"}
    named = {word for text in _strings(tests) for word in text.split()}
    by_others = {
        found
        for path in SCRIPTS.glob("*.s*")
        if path.name in named
        for found in re.findall(r"^submit .*/(\S+\.sbatch)", path.read_text(), re.MULTILINE)
    }
    assert script in named | by_others


@pytest.mark.parametrize("rule", get_args(RuleName))
def test_every_rule_is_seen_in_a_history_and_not_in_one_that_comes_near(rule: str) -> None:
    path = ROOT / "tests" / "megatron_dpop" / "health" / "test_rules.py"
    tests = [node for node in _tree(path).body if isinstance(node, ast.FunctionDef) and _names(node.body, rule)]
    assert tests, "a history that shows it"
    assert any(map(_has_a_history_without, tests)), "a history in which it does not hold"


def _names(body: list[ast.stmt], text: str) -> bool:
    return any(
        isinstance(node, ast.Constant) and node.value == text for statement in body for node in ast.walk(statement)
    )


def _has_a_history_without(test: ast.FunctionDef) -> bool:
    """A row of its parameters says False, or it asserts that nothing is found."""
    in_rows = (node for decorator in test.decorator_list for node in ast.walk(decorator))
    if any(isinstance(node, ast.Constant) and node.value is False for node in in_rows):
        return True
    return any(isinstance(node, ast.UnaryOp) and "_found(" in ast.unparse(node) for node in ast.walk(test))


# Where layers and their communication lie; no log-probability depends on it.
CHANGES_NO_NUMBER = {"virtual_pipeline", "first_stage_layers", "last_stage_layers", "overlap"}
COMPARED_WITH_ONE_RANK = ("gradients", "layouts", "experts", "lora", "gpu")  # tensor overlap needs a GPU
COSTS_NOTHING = {"overlap"}  # of what the formulas of `plan` take from elsewhere


def _parallel_keys() -> set[str]:
    return {field.name for field in dataclasses.fields(ParallelConfig)}


def test_every_parallel_key_is_part_of_a_references_key() -> None:
    path = ROOT / "megatron_dpop" / "training" / "reference_cache.py"
    read = {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
    assert _parallel_keys() - CHANGES_NO_NUMBER <= read


def test_every_parallel_key_is_planned_and_documented() -> None:
    assert _parallel_keys() - COSTS_NOTHING == {field.name for field in dataclasses.fields(ModelLayout)}
    page = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert [key for key in sorted(_parallel_keys()) if not re.search(rf"\bparallel\.{key}\b", page)] == []


def test_every_parallel_key_is_compared_with_one_rank() -> None:
    paths = [ROOT / "tests" / "megatron_dpop" / "training" / f"test_{name}.py" for name in COMPARED_WITH_ONE_RANK]
    calls = {node.arg for path in paths for node in ast.walk(_tree(path)) if isinstance(node, ast.keyword)}
    assert _parallel_keys() <= calls | _strings(paths)


def test_every_benchmark_is_registered_and_run_in_the_small() -> None:
    names = {module.__name__.rpartition(".")[2] for module in benchmark.BENCHMARKS}
    assert names == _files_with_register(ROOT / "tools" / "benchmarks")
    assert names <= _strings([ROOT / "tests" / "tools" / "test_benchmark.py"])
