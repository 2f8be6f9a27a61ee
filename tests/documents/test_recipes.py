"""What a recipe of CONTRIBUTING.md asks for and no other test would miss: each fails where one step is forgotten."""

import ast
import dataclasses
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
    """Every string that these files hold."""
    nodes = (node for path in paths for node in ast.walk(_tree(path)))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_a_loss_of_single_completions_is_planned_as_one() -> None:
    assert {name for name, loss in REGISTRY.items() if loss.kind in ("single", "sft")} == set(SINGLE_COMPLETION)


def test_every_family_has_a_small_model() -> None:
    """Qwen1's is written by the tests: transformers has no class of it."""
    assert {make().model_type for make in CONFIGS.values()} | {"qwen"} == set(FAMILIES)


def test_every_command_file_is_registered() -> None:
    having = {
        path.stem
        for path in COMMANDS.glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "register" for node in _tree(path).body)
    }
    called = {
        node.func.value.id
        for path in COMMANDS.glob("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "register"
        and isinstance(node.func.value, ast.Name)
    }
    assert having == called


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_every_script_runs_as_a_job(script: str) -> None:
    tests = set((ROOT / "tests" / "slurm").glob("test_*.py")) - {ROOT / "tests" / "slurm" / "test_scripts.py"}
    assert script in {word for text in _strings(tests) for word in text.split()}


@pytest.mark.parametrize("rule", get_args(RuleName))
def test_every_rule_is_seen_in_a_history_and_has_documented_thresholds(rule: str) -> None:
    path = ROOT / "tests" / "megatron_dpop" / "health" / "test_rules.py"
    shown = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant) and node.value == rule]
    assert len(shown) >= 2, "a row of the documented thresholds, and a history that shows it"


# Where layers and their communication lie; no log-probability depends on it.
CHANGES_NO_NUMBER = {"virtual_pipeline", "first_stage_layers", "last_stage_layers", "overlap"}
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
    assert [key for key in sorted(_parallel_keys()) if f"parallel.{key}" not in page] == []


def test_every_benchmark_is_run_in_the_small() -> None:
    names = {module.__name__.rpartition(".")[2] for module in benchmark.BENCHMARKS}
    assert names <= _strings([ROOT / "tests" / "tools" / "test_benchmark.py"])
