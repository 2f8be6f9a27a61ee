"""Every command that README.md and docs/ show is run, or checked as far as this machine allows."""

import contextlib
import importlib.util
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from checkpoint_convert.commands import run as run_checkpoint_convert
from megatron_dpop.commands.main import build_parser
from megatron_dpop.commands.main import run as run_megatron_dpop
from megatron_dpop.config.faults import keys_of, known_keys
from megatron_dpop.config.load import config_from_dict, load_config
from megatron_dpop.config.losses import LOSSES
from tests.documents.commands import DOCUMENTS, ROOT, Command, blocks, documented_commands, unmarked_commands
from tests.documents.workspace import placed, prepare

COMMANDS = documented_commands()
RUNNERS = {"megatron-dpop": run_megatron_dpop, "checkpoint-convert": run_checkpoint_convert}

# What is only checked here (sub-command, options, config keys, values), and why it is not run.
NOT_RUN = {
    r"megatron-dpop data make (metamath|arc|hellaswag)": "needs a dataset of the hub; the makers' tests run it",
    r"megatron-dpop analyze": "needs trained runs; tests/megatron_dpop/analysis runs it",
    r"megatron-dpop data inspect .*--model": "starts ranks; tests/megatron_dpop/analysis runs it",
    r"megatron-dpop data filter .*--scores": "needs what that leaves; tests/megatron_dpop/analysis runs it",
    r"megatron-dpop config from": "needs another trainer's file; tests/megatron_dpop/commands runs it",
    r"megatron-dpop plan .*--device cpu": "starts ranks; tests/megatron_dpop/commands runs it",
    r"megatron-dpop eval": "needs the extra eval; tests/megatron_dpop/evaluation runs it",
    r"megatron-dpop .* runs/quickstart": "needs what make quickstart leaves; tests/examples runs it",
    r"checkpoint-convert megatron-to-hf runs/lora": "needs a LoRA run; tests/checkpoint_convert runs it",
    r"checkpoint-convert .*--logits": "builds both models as ranks do; tests/checkpoint_convert runs it",
}
# Programs of others: nothing of theirs is checked.
OF_OTHERS = {
    "$EDITOR": "edits", "tail": "shows a log", "cat": "shows a file", "export": "the shell's", "eval": "the shell's",
    "cd": "the shell's", "source": "the shell's", "git": "FastChat's repository",
    "apt-get": "a private SLURM, Debian's packages",
    "docker": "needs Docker and a base of gigabytes", "apptainer": "needs Apptainer, and the same",
    "lm_eval": "needs vLLM and a GPU", "gen_model_answer.py": "FastChat: needs a GPU",
    "gen_judgment.py": "FastChat: needs a judge behind a network", "show_result.py": "FastChat",
}  # fmt: skip
# Scripts of this project: they exist and know their options, but running them here would take these.
NEEDS = {
    "examples/slurm/": "a cluster (tests/slurm runs them on one of two nodes)",
    "tools/slurm_cluster.sh": "SLURM's daemons (tests/slurm runs it)",
    "tools/": "minutes",
    "examples/paper/": "half an hour",
    "examples/arena/": "hours",
    "examples/quickstart/model.py": "the model's package from a registry",
    "examples/api/": "nothing (tests/examples/test_api.py runs them)",
    "examples/recipes/stages.py": "nothing, but writes configs (tests/slurm runs it)",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = prepare(tmp_path_factory.mktemp("documents"))
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


PLAIN_USE = ("quickstart", "first_run", "data", "lora", "evaluation", "analyze", "monitoring", "plan", "install")


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in PLAIN_USE)], ids=str)
def test_page_says_how_to_have_the_commands(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("source .venv/bin/activate") == 1


def _of(*programs: str) -> list[Command]:
    return [command for command in COMMANDS if command.words and command.words[0] in programs]


def _once(commands: list[Command]) -> list[Command]:
    """Each line once, where it is shown first: later ones may build on what it leaves."""
    found: dict[str, Command] = {}
    for command in commands:
        found.setdefault(command.line, command)
    return list(found.values())


def _reason(command: Command) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.line)), None)


RUN = _once([command for command in _of(*RUNNERS) if _reason(command) is None and not command.output_is_checked])
CHECKED = _once([command for command in _of(*RUNNERS) if _reason(command) is not None])


@pytest.mark.parametrize("command", RUN, ids=str)
def test_command_runs(command: Command, workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, *words = (placed(word, workspace) for word in command.words)
    if words[0] in ("train", "reference"):
        # Minutes of training are other tests'; this reads config, model and data, as for a new run.
        words += ["--dry-run", "--run.dir", "runs/new"]
    with contextlib.suppress(SystemExit):  # of --help
        code = RUNNERS[program](words)
        assert code == 0, capfd.readouterr().err


@pytest.mark.parametrize("command", CHECKED, ids=str)
def test_command_is_understood(command: Command) -> None:
    program, *words = command.words
    if program == "megatron-dpop":
        parsed, rest = build_parser().parse_known_args(words)
        assert not rest or getattr(parsed, "takes_overrides", False), rest
    else:
        from checkpoint_convert.commands import build_parser as converter

        converter().parse_args(words)


def test_reasons_are_not_stale() -> None:
    shown = "\n".join(command.line for command in COMMANDS)
    assert [pattern for pattern in NOT_RUN if not re.search(rf"^{pattern}", shown, re.MULTILINE)] == []
    assert [program for program in OF_OTHERS if program not in shown] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words and c.words[0] not in RUNNERS], ids=str)
def test_other_program_exists(command: Command) -> None:
    program, *words = command.words
    if program == "make":
        _check_make(words)
    elif program == "pip":
        _check_pip(words)
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1])
    elif program == "python" and words[0] not in OF_OTHERS:
        _check_script(words[0], words[1:])
    elif "/" in program:
        _check_script(program, words)
    else:
        assert program in OF_OTHERS or words[0] in OF_OTHERS, (
            f"{command}: what is {program}? Make it run here, or add it to OF_OTHERS with the reason"
        )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.assignments], ids=str)
def test_settings_before_a_command_exist(command: Command) -> None:
    settings = (ROOT / "examples" / "slurm" / "settings.sh").read_text()
    assert all(f"${{{assignment.split('=')[0]}=" in settings for assignment in command.assignments)


def test_no_command_hides_from_these_tests() -> None:
    assert unmarked_commands() == []
    assert len(RUN) > 15


@pytest.mark.parametrize(
    ("document", "text"),
    [(document, text) for document in DOCUMENTS for text in blocks(document, "yaml")],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_config_shown_is_valid(document: Path, text: str) -> None:
    tree = {"model": {"path": "model"}, "data": {"train": "pairs.parquet"}, **yaml.safe_load(text)}
    config_from_dict(tree, origin=document.name)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_example_config_is_valid(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    if "model" in tree:
        load_config(path)


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def _check_pip(words: list[str]) -> None:
    """Extras exist; other packages than ours are not ours to check."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if found := re.fullmatch(r"(?:\.|megatron-dpop)\[([\w,]+)\]", word):
            named = found[1].split(",")
            assert set(named) <= extras.keys() or named == ["model_worker", "llm_judge"]  # FastChat's


def _check_script(script: str, words: list[str]) -> None:
    """It exists, may be started, has a reason why it is not run here, and its source knows the options."""
    path = ROOT / script
    assert path.is_file(), script
    assert path.suffix == ".py" or os.access(path, os.X_OK), f"{script} is not executable"
    assert any(script.startswith(prefix) for prefix in NEEDS)
    source = path.read_text()
    if script.startswith("examples/slurm/"):
        source += (ROOT / "examples/slurm/common.sh").read_text()
    if script == "tools/benchmark.py":
        source += "".join(part.read_text() for part in (ROOT / "tools/benchmarks").glob("*.py"))
    for word in words:
        option = word.split("=")[0]
        if (option != word or option.startswith("--")) and re.fullmatch(r"(--)?[a-z_]+\.[a-z_]+", option):
            assert option.removeprefix("--") in _all_keys(), option
        elif option.startswith("--"):
            assert option in source, f"{script} has no option {option}"
        elif option.startswith("examples/"):
            assert (ROOT / option).exists(), option


def _all_keys() -> set[str]:
    return {*known_keys(), *(f"loss.{key}" for kind in LOSSES.values() for key in keys_of(kind))}
