"""What `megatron-dpop eval` takes, and what it says where it cannot."""

import sys
from pathlib import Path

import pytest
import yaml

from checkpoint_convert.commands import run as checkpoint_convert
from dpop_base.errors import UserError
from megatron_dpop.commands.main import run
from megatron_dpop.evaluation.results import model_names
from megatron_dpop.evaluation.subject import find_subject
from tests.tiny import write_config, write_model, write_pairs


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder as training leaves it, with an exported model."""
    folder = tmp_path / "run"
    write_model(folder / "hf")
    write_pairs(tmp_path / "pairs.jsonl", 6)
    tree = write_config(tmp_path, folder / "hf")
    tree["data"]["train"] = [{"path": tree["data"]["train"]}]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_a_run_is_its_exported_model(run_folder: Path) -> None:
    subject = find_subject(run_folder)
    assert (subject.model, subject.results) == (run_folder / "hf", run_folder / "eval")
    assert len(subject.prompts_of_training() or ()) == 6


def test_a_run_whose_data_are_gone_is_not_said_to_be_disjoint(run_folder: Path) -> None:
    (run_folder.parent / "pairs.jsonl").unlink()
    assert find_subject(run_folder).prompts_of_training() is None


def test_a_hugging_face_folder_keeps_its_scores_elsewhere(run_folder: Path) -> None:
    subject = find_subject(run_folder / "hf")
    assert (subject.model, subject.results, subject.config) == (run_folder / "hf", Path("eval/hf"), {})


def test_a_run_without_an_export_is_told_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=rf"checkpoint-convert megatron-to-hf {tmp_path}/checkpoints {tmp_path}/hf"):
        find_subject(tmp_path)


def test_a_megatron_checkpoint_is_told_how_to_export_it(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    assert checkpoint_convert(["hf-to-megatron", str(source), str(tmp_path / "megatron"), "--quiet"]) == 0
    with pytest.raises(UserError, match="is a Megatron checkpoint; export it first"):
        find_subject(tmp_path / "megatron")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "0"], "--limit: 0 is no number of problems"),
        (["--batch-size", "many"], "--batch-size: many is neither auto nor a number"),
    ],
)
def test_wrong_option_is_one_line(
    words: list[str], says: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(run_folder), "--tasks", "gsm_symbolic", *words]) == 2
    assert says in capsys.readouterr().err
    assert not (run_folder / "eval").exists()


@pytest.mark.parametrize("name", ["nowhere/", "org/..name"])
def test_a_name_that_is_neither_folder_nor_model_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", name, "--tasks", "gsm_symbolic"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"eval: {name} is" in line


def test_vllm_that_is_not_installed_is_one_line(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    assert run(["eval", str(run_folder), "--tasks", "gsm_symbolic", "--backend", "vllm"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--backend: vLLM is not installed" in line


def test_a_model_named_twice_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(run_folder), str(run_folder / "hf"), "--tasks", "gsm_symbolic"]) == 2
    assert "names a model twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/dpo/hf", "runs/dpop/hf", "models/base"], ["dpo", "dpop", "base"]),
        (["a/run/hf", "b/run/hf"], ["a/run", "b/run"]),
    ],
)
def test_models_are_called_by_what_tells_them_apart(folders: list[str], names: list[str]) -> None:
    assert model_names(folders) == names


def test_a_missing_harness_is_one_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert run(["eval", str(run_folder), "--tasks", "gsm_symbolic"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '[eval]"' in line
