"""What a person sees: bars with rates and the time left on a terminal, one at a time; plain lines in a log."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.documents.commands import ROOT
from tests.terminal import drawn_by
from tests.tiny import write_config, write_model, write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Draw = Callable[..., str]
STRANGERS = ("it/s", "%|", "s/it", "wandb:", "Loading weights", "fatal:", "Traceback", "Warning")  # bars of others
TIME_LEFT = r"(?:\d+ s|\d+ min) left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside every repository: a model, pairs and a config that asks for Weights & Biases too."""
    folder = tmp_path_factory.mktemp("terminal")
    write_model(folder / "model", dtype="bfloat16", max_position_embeddings=1024)
    write_pairs(folder / "pairs.jsonl", 96)
    write_pairs(folder / "held.jsonl", 24, seed=1)
    tree = write_config(folder, folder / "model", parallel={"tensor": 2}, train={"steps": 8, "global_batch_pairs": 8})
    tree["data"] |= {"train": "pairs.jsonl", "validation": "held.jsonl"}
    tree["checkpoint"] = {"export_hf": True}
    tree["logging"] = {"wandb": {"project": "none"}}
    tree["run"] = {"dir": "runs/first"}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def draw(folder: Path) -> Draw:
    def run(module: str, *words: str) -> str:
        drawn = drawn_by(
            [sys.executable, "-m", module, *words], columns=100, cwd=folder, environment=_environment(folder)
        )
        assert [word for word in STRANGERS if word in drawn] == []
        return drawn

    return run


def _environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "WANDB_MODE": "offline"}
    alone = {"OMP_NUM_THREADS": "1"}  # two threads wait for each other at each small product where cores are busy
    return {**os.environ, **own, **alone, "MEGATRON_DPOP_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}


def _bars(drawn: str, title: str) -> list[str]:
    """The bar as it was drawn, again and again; nothing may stand on its line."""
    bars = [line for line in re.split(r"[\r\n]+", drawn) if f"{title} " in line and re.search("[━╸╺]", line)]
    assert bars, f"no bar of {title} in {drawn[-3000:]}"
    assert [bar for bar in bars if not bar.startswith(title)] == []
    return bars


def test_a_run(folder: Path, draw: Draw) -> None:
    pytest.importorskip("wandb")
    drawn = draw("megatron_dpop", "train", "config.yaml")
    assert "tokenising pairs" in drawn
    for title, total in (("reference (train)", 8), ("dpop", 8)):
        bars = _bars(drawn, title)
        assert re.search(rf" {total}/{total}", bars[-1])
        assert any(re.search(TIME_LEFT, bar) for bar in bars)
    assert re.search(r"loss \d\.\d+ .* pairs/s \d", drawn)
    assert re.search(r"\d\.\d\d s each", drawn), "the reference pass has no numbers of its own but its pace"
    log = subprocess.run(
        [
            sys.executable,
            "-m",
            "megatron_dpop",
            "train",
            "config.yaml",
            "--run.dir",
            "runs/second",
            "--parallel.tensor",
            "1",
        ],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in log.stderr
    assert "\r" not in log.stderr
    assert [word for word in STRANGERS if word in log.stderr] == []
    assert re.search(rf"^dpop 4/8  loss .*  {TIME_LEFT}$", log.stderr, re.MULTILINE)


def test_what_looks_at_a_run(folder: Path, draw: Draw) -> None:
    if not (folder / "runs" / "first" / "hf").exists():
        test_a_run(folder, draw)
    drawn = draw("megatron_dpop", "analyze", "runs/first", "--pairs", "held.jsonl", "--out", "tokens.html")
    assert "3/3" in _bars(drawn, "first")[-1]
    assert drawn.rstrip().endswith("tokens.html")
    drawn = draw("checkpoint_convert.commands", "megatron-to-hf", "runs/first/checkpoints", "out")
    assert re.search(r"\d\.\d\d GB/s", _bars(drawn, "converting")[-1])


def test_an_evaluation(folder: Path, draw: Draw) -> None:
    pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    drawn = draw("megatron_dpop", "eval", "model", "--tasks", "gsm_symbolic", "--limit", "12", "--batch-size", "4")
    assert "prompts" in drawn
    assert "12 answers of at most 320 tokens, 4 at once" in drawn
    assert any(re.search(rf" \d/3 .*(?:each|/s), {TIME_LEFT}", bar) for bar in _bars(drawn, "answers"))
