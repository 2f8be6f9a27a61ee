"""`megatron-dpop analyze` from the command line; bad input is one line and exit code 2."""

import json
import re
from pathlib import Path

import pytest

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from megatron_dpop.commands.main import run
from tests.commands import printed
from tests.tiny import write_model, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    write_model(folder / "base")
    write_model(folder / "tuned", seed=1)
    write_model(folder / "small", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 4)
    return folder


@pytest.mark.slow
def test_megatron_checkpoint_against_hugging_face_folder_on_a_page(world: Path) -> None:
    """From pairs whose columns the command names."""
    hf_to_megatron(world / "tuned", world / "megatron", progress=False)
    files = ["--reference", world / "base", *_oddly_named(world), "--out", world / "page.html"]
    found = json.loads(printed("analyze", world / "megatron", *files, "--json", "--tensor", "2"))
    assert [model["name"] for model in found["models"]] == ["reference", "megatron"]
    assert found["pairs"] == 4
    assert found["models"][0]["ches_rank_correlation"] is None
    assert found["models"][1]["ches_rank_correlation"].keys() == {"ches", "ches_per_token"}
    page = (world / "page.html").read_text()
    assert page.count('class="card sample"') == 4
    assert "megatron" in page
    (dots,) = re.findall(r'class="dots"[^>]* d="([^"]*)"', page)
    assert dots.count("M") == dots.count("h0") == 4
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page), "the page needs something beside itself"


def _oddly_named(world: Path) -> list[object]:
    """The pairs under columns that say nothing, and the words that say what each is."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    odd = world / "odd.jsonl"
    odd.write_text(
        "".join(json.dumps({"User": r["prompt"], "A": r["chosen"], "B": r["rejected"]}) + "\n" for r in rows)
    )
    return ["--pairs", odd, "--columns", "prompt:User,chosen:A,rejected:B"]


def test_columns_need_names(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, world / "base", *_oddly_named(world)[:2])


@pytest.mark.slow
def test_columns_by_name(world: Path) -> None:
    given, named = (
        json.loads(printed("analyze", world / "base", *options, "--json"))["models"]
        for options in (["--pairs", world / "pairs.jsonl"], _oddly_named(world))
    )
    assert named == given


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["analyze", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.removeprefix("megatron-dpop: error: ").strip()


def test_bad_input_is_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, pairs = world / "base", world / "pairs.jsonl"
    missing = tmp_path / "none.jsonl"
    assert str(missing) in refused(capsys, base, "--pairs", missing)
    same = tmp_path / "same.jsonl"
    same.write_text(
        '{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n{"prompt": "w1", "chosen": "w2", "rejected": "w2"}\n'
    )
    assert re.search(rf"{re.escape(str(same))}.*2.*identical", refused(capsys, base, "--pairs", same))
    assert "no-model: no such folder; give a run" in refused(capsys, tmp_path / "no-model", "--pairs", pairs)
    assert "neither config.json nor" in refused(capsys, tmp_path, "--pairs", pairs)
    assert "of another shape" in refused(capsys, world / "small", "--reference", base, "--pairs", pairs)
    assert "parallel.tensor: 3" in refused(capsys, base, "--pairs", pairs, "--tensor", "3")
    assert "--samples" in refused(capsys, base, "--pairs", pairs, "--samples", "-1")
    assert "--out" in refused(capsys, base, "--pairs", pairs, "--out", tmp_path / "no" / "page.html")


def test_runs_without_weights_or_with_several_references(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in (("a", "base"), ("b", "tuned")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            f"model: {{path: {world / model}}}\ndata: {{train: {world / 'pairs.jsonl'}}}\n"
        )
    pairs = world / "pairs.jsonl"
    assert "no trained weights" in refused(capsys, tmp_path / "a", "--pairs", pairs)
    for name in ("a", "b"):
        (tmp_path / name / "hf").symlink_to(world / "base")
    message = refused(capsys, tmp_path / "a", tmp_path / "b", "--pairs", pairs)
    assert "different references" in message
    assert "--reference" in message
