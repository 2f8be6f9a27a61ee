"""A new user's walk: the commands of the pages of plain use, as printed, in order, with another model and other data.

In an empty folder outside the checkout, with the README's config but for its size; what a page takes for granted (a
model, pairs, the runs that `make quickstart` or a LoRA run leave) is made before the page. A line that several pages
show is walked once.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.documents.commands import ROOT, Command, blocks, documented_commands
from tests.tiny import write_model, write_pairs

pytestmark = pytest.mark.slow

PAGES = ("README.md", "quickstart.md", "first_run.md", "data.md", "lora.md", "evaluation.md", "analyze.md",
         "monitoring.md", "plan.md")  # fmt: skip
PROGRAMS = ("megatron-dpop", "checkpoint-convert")
ELSEWHERE = {
    "open_llm_leaderboard": "needs the hub",
    "arc_challenge": "needs the hub",
    "data make": "needs a dataset of the hub, or the extra that the makers' tests have",
}
MODELS = ("models/Qwen2.5-7B-Instruct", "models/Qwen2.5-7B", "MODEL_FOLDER")
ROOM = {  # for the README's config on a machine of two cores
    "parallel": {"tensor": 2},
    "train": {"steps": 4, "global_batch_pairs": 8},
}
SECONDS = 500  # of one command

type Walk = Callable[[str], "subprocess.CompletedProcess[str]"]


def _walked() -> list[Command]:
    found: dict[str, Command] = {}
    for command in documented_commands():
        page = command.document.name if command.document.parent in (ROOT, ROOT / "docs") else ""
        is_ours = command.words and command.words[0] in PROGRAMS and not command.output_is_checked
        if page in PAGES and is_ours and not any(word in command.line for word in ELSEWHERE):
            found.setdefault(command.line, command)
    return sorted(found.values(), key=lambda command: PAGES.index(command.document.name))


def _python() -> dict[str, str]:
    pages = [ROOT / page if page == "README.md" else ROOT / "docs" / page for page in PAGES]
    return {f"{page.name} {at}": text for page in pages for at, text in enumerate(blocks(page, "python"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, but for a model of the reader's own, two files of pairs and the README's config."""
    folder = tmp_path_factory.mktemp("walk")
    shape = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4}
    model = write_model(folder / "my-model", seed=7, dtype="bfloat16", max_position_embeddings=4096, **shape)
    _answer_shortly(model / "model.safetensors")
    (folder / "models").mkdir()
    for name in MODELS:
        (folder / name).symlink_to(model)
    for name, count, seed in (("pairs", 140, 3), ("held_out", 10, 4)):
        _write_parquet(write_pairs(folder / f"{name}.jsonl", count, seed=seed))
    (folder / "pairs").mkdir()
    shutil.copy(folder / "pairs.parquet", folder / "pairs" / "train.parquet")
    shutil.copy(folder / "held_out.parquet", folder / "pairs" / "validation.parquet")
    (printed,) = blocks(ROOT / "README.md", "yaml")
    (folder / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(printed) | ROOM))
    return folder


def _answer_shortly(weights: Path) -> None:
    """Makes the end of a turn likely: an evaluation's answers are not what is walked here."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["lm_head.weight"][4] *= 8
    save_file(tensors, weights, metadata={"format": "pt"})


def _write_parquet(lines: Path) -> None:
    import pyarrow.json
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.json.read_json(lines), lines.with_suffix(".parquet"))


@pytest.fixture(scope="module")
def walk(place: Path) -> Walk:
    """Runs a line in the folder as a shell would, with the environment's commands on its path."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # two threads wait for each other at each small product where cores are busy
    }

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS
        )

    return run


def _make_what_it_takes_for_granted(line: str, place: Path, walk: Walk) -> None:
    """Makes the runs that a line speaks of and no line before has left."""
    runs = place / "runs"

    def is_missing(name: str) -> bool:
        return f"runs/{name}" in line and not (runs / name).exists()

    if is_missing("quickstart"):  # as `make quickstart` leaves it, which is a test of its own
        for name, source in (("dpop", "first"), ("dpo", "dpo")):
            shutil.copytree(runs / source, runs / "quickstart" / name)
        (runs / "quickstart" / "model").symlink_to(place / "my-model")
        (runs / "quickstart" / "pairs").mkdir()
        for name, split in (("pairs", "train"), ("held_out", "validation")):
            shutil.copy(place / f"{name}.jsonl", runs / "quickstart" / "pairs" / f"{split}.jsonl")
    if is_missing("dpop"):
        shutil.copytree(runs / "first", runs / "dpop")
    if is_missing("lora"):
        words = "--run.dir runs/lora --lora.rank 4 --parallel.tensor 1 --train.steps 100 --train.global_batch_pairs 1"
        done = walk(f"megatron-dpop train config.yaml --quiet {words}")
        assert done.returncode == 0, done.stderr


WALKED, PYTHON = _walked(), _python()


@pytest.mark.parametrize("command", WALKED, ids=str)
def test_a_command_as_printed(command: Command, place: Path, walk: Walk) -> None:
    if "eval" in command.words[1:2]:
        pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    _make_what_it_takes_for_granted(command.line, place, walk)
    done = walk(command.line)
    assert done.returncode == 0, f"{command.line}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    assert "fatal: not a git repository" not in done.stderr


@pytest.mark.parametrize("name", PYTHON)
def test_python_as_printed(name: str, place: Path, walk: Walk) -> None:
    text = PYTHON[name]
    if "peft" in text:
        pytest.importorskip("peft")
    _make_what_it_takes_for_granted(text, place, walk)
    done = walk(shlex.join(["python", "-c", text]))
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"


def test_every_page_is_walked() -> None:
    assert {command.document.name for command in WALKED} == set(PAGES)
    shown = "\n".join(command.line for command in documented_commands())
    assert [words for words in ELSEWHERE if words not in shown] == []
