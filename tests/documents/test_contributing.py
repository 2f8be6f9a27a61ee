"""CONTRIBUTING.md, the picture of packages, the workflows and the hooks agree with the repository."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from draw_packages import PICTURE, picture

import megatron_dpop
from megatron_dpop.commands.main import run
from tests.documents.commands import ROOT

RECIPES = (
    *("A loss", "A model family", "A command", "A metric", "A config key"),
    *("A data format", "A SLURM script", "A health rule", "A parallel axis", "A benchmark"),
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_files_and_tests_that_exist(title: str) -> None:
    recipe = CONTRIBUTING.split(f"\n### {title}\n")[1].split("\n#")[0]
    steps, _, tests = recipe.partition("\nTests: ")
    paths = re.findall(r"`([\w./]+(?:/|\.py|\.md|\.sh))`", recipe)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(re.findall(r"^\d\. ", steps, re.MULTILINE)) >= 2
    assert "tests/" in tests


def test_the_picture_is_drawn_from_todays_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run python tools/draw_packages.py"


def test_workflows_call_the_targets_of_ci() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    targets = set(re.findall(r"^\s*make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert sorted(workflow["jobs"]["make"]["strategy"]["matrix"]["target"]) == sorted(targets)


def test_hooks_use_the_locked_linter() -> None:
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (version,) = (package["version"] for package in locked if package["name"] == "ruff")
    assert re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()) == [version] * 2


def test_every_name_of_the_api_page_can_be_imported() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    shown = re.findall(r"^\| `(\w+)", page, re.MULTILINE)
    assert set(shown) == set(megatron_dpop.__all__) - {"Config", "TrainedRun"}
    assert all(getattr(megatron_dpop, name) is not None for name in megatron_dpop.__all__)


def test_importing_the_package_is_free() -> None:
    code = (
        "import sys, megatron_dpop; print([name for name in ('torch', 'megatron', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_packages_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert megatron_dpop.__version__ == project
    assert f"version: {project}" in (ROOT / "CITATION.cff").read_text()


def test_a_plan_from_python_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    given = ("examples/plan/qwen-72b.yaml", "--gpus", "64", "--pair", "450,230,160", "--json")
    assert run(["plan", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    planned = megatron_dpop.plan_config("examples/plan/qwen-72b.yaml", gpus=64, pair=(450, 230, 160))
    assert planned.choice.devices == 64
    assert planned.memory.total == shown["memory_bytes"]["total"]


FRAGMENTS = {"Of", "By", "As", "At", "Before", "For", "From", "In", "On", "To", "With", "Without"}


def test_docstrings_are_sentences() -> None:
    """They begin with a verb or with what the thing is, not with a fragment that the name has to complete."""
    fragments = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for package in ("megatron_dpop", "checkpoint_convert", "dpop_base", "tools", "examples")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        if (text := ast.get_docstring(node)) and text.split()[0] in FRAGMENTS
    ]
    assert fragments == []


def test_issue_templates_ask_in_words() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        for field in yaml.safe_load(path.read_text())["body"]:
            assert field["attributes"].keys() <= {"label", "description", "render"}, path.name
