"""Every recipe: a dry run at its true size, and all of its stages trained with its `tiny` override."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.recipes.tiny import write_data
from megatron_dpop.commands.main import run
from megatron_dpop.config.schema import ParallelConfig
from tests.distributed import run_ranks
from tests.examples.shapes import write_hollow_model
from tests.exhaustive import in_ci
from tests.training import train_all

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# Trained from the first stage to the last in a job of its own each (tests/slurm).
ON_SLURM = "smaug-34b"
# Another recipe's stages, on fewer GPUs.
VARIANTS = [name for name in NAMES if name.endswith("-one-node")]
CHAINS = [name for name in NAMES if name not in VARIANTS and name != ON_SLURM]
GPUS_PER_NODE = 8
# Of one or two stages and of middling size: each of the others takes many seconds.
QUICK = ("smaug-7b", "qwen2.5-72b", "llama3.1-70b", "smollm3-3b", "mixtral-8x7b")


def stages(recipe: str, folder: Path, *options: object) -> list[list[str]]:
    """[config's path, run.dir, first model] of each stage, as the tool prints them; paths relative to `folder`."""
    done = subprocess.run(
        [sys.executable, RECIPES / "stages.py", *map(str, options), RECIPES / f"{recipe}.yaml"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=folder,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def stated_memory(recipe: str) -> dict[str, str]:
    """GiB of each part, and in all, as the recipe's header has them."""
    (line,) = re.findall(r"^# Memory of a GPU, GiB: (.*) of 79\.1\.$", recipe, flags=re.MULTILINE)
    return {part.replace("with buffers", "total"): size for part, size in re.findall(r"([a-z][a-z ]*) ([\d.]+)", line)}


def stated_plan(recipe: str) -> tuple[str, str]:
    """The lengths of pairs for which it states memory and time, and the seconds of a step."""
    (lengths,) = re.findall(r"--pair ([\d,]+)`", recipe)
    (seconds,) = re.findall(r"^# Time of a step: ([\d.]+) s for \d+ pairs\.$", recipe, flags=re.MULTILINE)
    return lengths, seconds


def test_the_papers_recipes_and_todays_are_there() -> None:
    papers = {"smaug-7b", "smaug-34b", "smaug-34b-one-node", "smaug-72b", "smaug-72b-one-node", "mistral-7b"}
    todays = {"tulu3-8b", "tulu3-70b", "olmo3-style-32b", "smollm3-3b", "llama3.1-70b"}
    mixtures = {"qwen3-30b-a3b", "qwen3-30b-a3b-one-node", "qwen3-235b-a22b", "mixtral-8x7b"}
    assert papers | todays | mixtures | {"qwen2.5-72b", "qwen3-32b", "llama3-70b"} == {*NAMES}
    for name in NAMES:
        rate = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["config"]["optimizer"]["lr"]
        assert (rate == 5e-5) is (name in papers)


def test_smaug_34b_has_seven_stages_with_the_papers_values(tmp_path: Path) -> None:
    configs = [yaml.safe_load((tmp_path / path).read_text()) for path, _, _ in stages("smaug-34b", tmp_path)]
    assert [config["loss"]["name"] for config in configs] == ["sft", *["dpop"] * 5, "dpo"]
    for config in configs[1:6]:
        assert config["loss"] == {"name": "dpop", "beta": 0.3, "lambda": 50.0}
        assert config["train"]["steps"] == 1000
        assert config["optimizer"]["lr"] == 5e-5
    for before, after in itertools.pairwise(configs):
        assert after["model"]["path"] == f"{before['run']['dir']}/checkpoints"
    assert [config["checkpoint"]["export_hf"] for config in configs] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no.yaml: cannot read the config"),
        ("stages: [", "no.yaml: cannot be read as a config: it is no YAML"),
        ("stages: []\nconfig: {}\n", "no.yaml: config.model.path is missing"),
        ("model: {path: m}\n", "no.yaml: run.dir is missing"),
        ("config: {model: {path: m}, run: {dir: r}}\nstages: []\nconfig: {}\n", "`config` stands twice"),
    ],
)
def test_what_has_no_stages_is_refused_in_one_line(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "no.yaml").write_text(text)
    words = [sys.executable, RECIPES / "stages.py", "no.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_dry_run_at_its_true_size(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (nodes,) = set(re.findall(r"JOB_NODES=(\d+)", (RECIPES / f"{recipe}.yaml").read_text()))
    ranks = int(nodes) * GPUS_PER_NODE
    stated = stated_memory((RECIPES / f"{recipe}.yaml").read_text())
    for config, run_dir, start in stages(recipe, tmp_path):
        tree = yaml.safe_load(Path(config).read_text())
        model = Path(start or tree["model"]["path"])
        if not model.exists():
            write_hollow_model(model)
        for split in ("train", "validation"):
            given = tree["data"].get(split, [])
            for source in given if isinstance(given, list) else [{"path": given}]:
                write_data(Path(source["path"]), demonstrations=tree["loss"]["name"] == "sft")
        assert run(["train", config, "--model.path", str(model), "--dry-run", "--ranks", str(ranks)]) == 0
        out = capsys.readouterr().out
        assert re.search(rf"x data \d+ = {ranks} ranks(, experts over .*)?\nrun.dir: {run_dir}\n", out), out
        assert run(["train", config, "--model.path", str(model), "--dry-run", "--ranks", str(ranks + 1)]) == 2
        assert not Path(run_dir).exists()
    assert yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["gpus"] == ranks
    lengths, seconds = stated_plan((RECIPES / f"{recipe}.yaml").read_text())
    assert run(["plan", config, "--model.path", str(model), "--gpus", str(ranks), "--pair", lengths, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert stated == {part: f"{planned['memory_bytes'][part] / 2**30:.1f}" for part in stated}
    assert seconds == f"{planned['seconds']['step']:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", in_ci(*CHAINS, of=CHAINS + VARIANTS))
def test_all_stages_train_with_the_tiny_override(recipe: str, tmp_path: Path) -> None:
    listed = stages(recipe, tmp_path, "--tiny", tmp_path)
    trees = [yaml.safe_load(Path(config).read_text()) for config, _, _ in listed]
    whole = [yaml.safe_load((tmp_path / config).read_text()) for config, _, _ in stages(recipe, tmp_path)]
    assert [tree["loss"] for tree in trees] == [tree["loss"] for tree in whole]
    (ranks,) = {ParallelConfig(**tree["parallel"]).fewest_ranks for tree in trees}
    for tree, metrics in zip(trees, run_ranks(train_all, ranks, trees)[0], strict=True):
        assert [line["step"] for line in metrics][: tree["train"]["steps"]] == list(range(tree["train"]["steps"]))
        assert all(math.isfinite(line["loss"]) for line in metrics if "loss" in line)
        # Policy and reference are the same weights, be it a chain's first model or the last stage's result.
        assert metrics[0].get("reference/drift") == (None if tree["loss"]["name"] == "sft" else 0.0)
