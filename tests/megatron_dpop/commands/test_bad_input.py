"""Bad input ends in one line that says what, where and the fix, exit code 2, and nothing left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from megatron_dpop.commands.main import run
from megatron_dpop.config import dump_config
from megatron_dpop.config.load import config_from_dict
from tests.tiny import write_config, write_model, write_pairs

PAIR = {"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w3 w5"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder and the same model as a Megatron checkpoint, never changed by a test."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "hf", num_hidden_layers=2)
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    return folder


@dataclass
class World:
    """A good run's inputs in a folder of their own, to be spoilt."""

    folder: Path
    model: Path
    megatron: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def write_rows(self, *rows: dict) -> None:
        self.pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tree(self) -> dict:
        return write_config(self.folder, self.model)

    def refused(self, *overrides: str, tree: dict | None = None) -> str:
        """Trains; returns the one line on standard error, without `megatron-dpop: error: `."""
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(tree or self.tree()))
        before = self.files()
        assert run(["train", str(config), *overrides]) == 2
        out, error = self.capsys.readouterr()
        assert out == ""
        assert error.startswith("megatron-dpop: error: ")
        assert error.count("\n") == 1
        assert len(error) < 600
        assert self.files() == before, "something was left behind"
        kept = [path for path in (self.folder.parent / "cache").rglob("*") if path.is_file()]
        assert {path.suffix for path in kept} <= {".arrow", ".json", ".lock"}, "a half-written cache was left behind"
        assert {path.stem for path in kept if path.suffix == ".arrow"} == {
            path.stem for path in kept if path.suffix == ".json"
        }
        return error.removeprefix("megatron-dpop: error: ").rstrip()

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def world(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    shutil.copytree(models / "hf", tmp_path / "hf")
    shutil.copytree(models / "megatron", tmp_path / "megatron")
    write_pairs(tmp_path / "pairs.jsonl", 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    for variable in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(variable, raising=False)
    return World(tmp_path, tmp_path / "hf", tmp_path / "megatron", capsys)


def _cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


Spoil = Callable[[World], object]
HUGGING_FACE: dict[str, tuple[Spoil, str]] = {
    "no folder": (lambda w: shutil.rmtree(w.model), "model.path: .*/hf is not a folder; give"),
    "empty folder": (lambda w: [p.unlink() for p in w.model.iterdir()], "neither config.json nor .*; name"),
    "no weights": (lambda w: (w.model / "model.safetensors").unlink(), "has no weights .*; download them"),
    "truncated": (lambda w: _cut(w.model / "model.safetensors"), "model.safetensors: should be .* bytes long and is"),
    "cut in the header": (
        lambda w: _cut(w.model / "model.safetensors", 1e-4),
        "safetensors: .*download it again",
    ),
    "empty file": (lambda w: (w.model / "model.safetensors").write_bytes(b""), "is shorter than any safetensors file"),
    "broken config.json": (lambda w: (w.model / "config.json").write_text("{"), "config.json: "),
}


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_broken_hugging_face_folder(world: World, case: str) -> None:
    spoil, expected = HUGGING_FACE[case]
    spoil(world)
    assert_matches(expected, world.refused())


MEGATRON: dict[str, tuple[Spoil, str]] = {
    "no shard": (lambda w: (w.megatron / "release" / "__0_0.distcp").unlink(), "distcp: cannot be opened .*; copy"),
    "truncated shard": (
        lambda w: _cut(w.megatron / "release" / "__0_0.distcp"),
        "distcp: is .* bytes .* should be .*; copy",
    ),
    "no metadata": (
        lambda w: (w.megatron / "release" / ".metadata").unlink(),
        "has no .metadata, .*; save or copy it again",
    ),
    "truncated metadata": (lambda w: _cut(w.megatron / "release" / ".metadata"), ".metadata: .*; "),
    "no iteration": (lambda w: shutil.rmtree(w.megatron / "release"), "release: has no .metadata, "),
    "broken tracker": (
        lambda w: (w.megatron / "latest_checkpointed_iteration.txt").write_text("soon"),
        "latest_checkpointed_iteration.txt: holds 'soon'; it must hold",
    ),
    "no assets": (lambda w: shutil.rmtree(w.megatron / "huggingface"), "has no huggingface/config.json; copy"),
}


@pytest.mark.parametrize("case", MEGATRON)
def test_broken_megatron_folder(world: World, case: str) -> None:
    spoil, expected = MEGATRON[case]
    world.model = world.megatron
    spoil(world)
    assert_matches(expected, world.refused())


def test_broken_reference_model(world: World) -> None:
    shutil.copytree(world.model, world.folder / "other")
    _cut(world.folder / "other" / "model.safetensors")
    assert_matches("other/model.safetensors: should", world.refused("--reference.model", str(world.folder / "other")))


LAYOUTS = {
    (
        "--parallel.tensor",
        "3",
    ): r"parallel.tensor: 3 does not divide .* use one of \[1, 2\], or parallel.pad_heads",
    ("--parallel.tensor", "4"): r"parallel.tensor: 4 does not divide .* 2 key/value heads; use one of \[1, 2\]",
    ("--parallel.pipeline", "3"): "parallel.pipeline: 3 does not divide the model's 2 layers; use",
    (
        "--parallel.tensor",
        "5",
        "--parallel.pad_heads",
        "true",
    ): "parallel.tensor: 5 does not divide .* FFN size 96",
}


@pytest.mark.parametrize("overrides", LAYOUTS)
def test_layouts_that_do_not_fit_the_model(world: World, overrides: tuple[str, ...]) -> None:
    assert_matches(LAYOUTS[overrides], world.refused(*overrides))


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_more_tokens_than_the_model_has_positions(world: World, kind: str) -> None:
    world.model = world.folder / kind
    message = world.refused("--data.max_tokens", "513")
    assert_matches(
        f"data.max_tokens: 513 is more than the 512 positions that .*/{kind} knows .*; give at most 512", message
    )


def test_rope_scaling_raises_the_limit_to_what_the_config_states(world: World) -> None:
    """Llama 3.1 states 131072 positions and scales from 8192: the stated ones count."""
    path = world.model / "config.json"
    scaling = {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": scaling}))
    assert_matches("data.max_tokens: 513 is more than the 512", world.refused("--data.max_tokens", "513"))
    world.write_rows({**PAIR, "chosen": "w3 " * 500})  # refused for its own length, not for data.max_tokens
    assert_matches("line 1: .* tokens .* more than data.max_tokens 500", world.refused("--data.max_tokens", "500"))


ROWS: dict[str, tuple[dict, str]] = {
    "missing field": ({"prompt": "w1", "chosen": "w2"}, "line 2: missing `rejected`"),
    "null field": ({**PAIR, "rejected": None}, "line 2: `rejected` is null; a string is needed"),
    "empty completion": ({**PAIR, "chosen": ""}, "line 2: `chosen` is empty; a completion needs text"),
    "identical completions": ({**PAIR, "rejected": "w3 w4"}, "line 2: `chosen` and `rejected` are identical; a pref"),
    "identical in tokens": ({**PAIR, "rejected": "w3  w4"}, "line 2: the completions are identical once tokenised"),
    "too long": ({**PAIR, "chosen": "w3 " * 80}, "line 2: .* tokens .* more than data.max_tokens 64; raise it"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_are_no_pairs(world: World, case: str) -> None:
    row, expected = ROWS[case]
    world.write_rows(PAIR, row)
    assert_matches(f"pairs.jsonl, {expected}", world.refused())


def test_a_first_row_without_a_field(world: World) -> None:
    world.write_rows({"prompt": "w1", "chosen": "w2"})
    assert_matches("pairs.jsonl, line 1: ", world.refused())


@pytest.mark.parametrize("share", ["true", "false"])
def test_pair_longer_than_a_row(world: World, share: str) -> None:
    long = {"prompt": "w1", "chosen": " ".join(["w2"] * 30), "rejected": " ".join(["w3"] * 30)}
    world.write_rows(PAIR, long)
    message = world.refused("--data.row_tokens", "32", "--data.share_prefix", share)
    assert_matches("data.row_tokens: 32 is less than the .* of an example of .*pairs.jsonl, .*; raise it", message)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_data_file(world: World, split: str) -> None:
    assert_matches("none.parquet: ", world.refused(f"--data.{split}", str(world.folder / "none.parquet")))


KEYS = {
    (
        "--optimizer.learning_rate",
        "1e-4",
    ): "command line: unknown key optimizer.learning_rate; did you mean optimizer.lr[?]",
    ("--train.step", "3"): "command line: unknown key train.step; did you mean train.steps[?]",
    ("--data.row_token", "9"): "command line: unknown key data.row_token; did you mean data.row_tokens[?]",
    ("--loss.lamda", "5"): "command line: loss.lamda has no effect on loss 'dpop'; did you mean loss.lambda[?]",
    ("--loss.name", "dppo"): "command line: loss.name: 'dppo' is no loss; did you mean dpo",
    ("--lora.targets", "[linear_qkv, linear_fc]"): r"command line: lora.targets.1: 'linear_fc' is not valid: no linear "
    r"layer has that name; did you mean linear_fc[12]\?",
    ("--lora.targets", "[q_proj]"): "'q_proj' is not valid: it is part of Megatron's linear_qkv; name that instead",
    ("--lora.targets", "[]"): "lora.targets: .* is not valid: .* at least 1 item",
    ("--lora.rank", "0"): "lora.rank: 0 is not valid: ",
    ("--lora.rnk", "8"): "unknown key lora.rnk; did you mean lora.rank[?]",
    ("--loss.beta", "-1"): "command line: loss.beta: -1 is not valid: input should be greater than 0",
    ("--train.steps", "0"): "train.steps: 0 is not valid: ",
    ("--train.batch_size", "3"): "command line: unknown key train.batch_size; did you mean train.global_batch_pairs[?]",
    ("--experts.moe_expert_capacity_factor", "1.25"): "command line: experts.moe_expert_capacity_factor: .*"
    "what a pair's tokens get would depend on the pairs beside it.; remove it$",
    ("--experts.token_drop_policy", "probs"): "experts.token_drop_policy: .* depend on the pairs beside it",
    ("--learning_rate", "3"): "--learning_rate: not an option; did you mean --optimizer.lr[?]",
    ("--beta=3",): "--beta=3: not an option; override a config key",
    (
        "--optimizer.warmup_steps",
        "3",
    ): "command line: optimizer.warmup_steps: 3 is not less than train.steps 3; warm up",
    ("--train.epochs", "1"): "train: .*steps and epochs say the same in two ways; leave one of them out",
    ("--train.epochs", "1", "--train.steps", "null", "--optimizer.warmup_steps", "5"): "5 is not less than the 2 steps",
    ("stray",): "stray: not an option; override",
    ("--train.steps",): "--train.steps: needs a value",
}


KEYS |= {
    (
        "--data.unscored",
        "[w1 w2]",
    ): "data.unscored: 'w1 w2' is 2 tokens of .*; name single tokens .* '<end>', or special",
    ("--data.unscored", f"[<end>, {', '.join(f'w{at}' for at in range(90))}]"): (
        "data.unscored: example 1 of .*pairs.jsonl has an answer of nothing but such tokens"
    ),
    (
        "--loss.name",
        "sum",
        "--loss.terms",
        "[{name: dpo, ld_alpha: 0.5}, {name: bco}]",
    ): "loss.terms: .*all terms see the same",
}
BEST = "{metric: validation/reward/margin, mode: max}"
KEYS |= {
    ("--checkpoint.best", "{metric: validation/loss}"): "checkpoint.best.mode is missing; add it",
    ("--train.validate_every", "5"): "train.validate_every: there is no validation; set data.validation",
    ("--checkpoint.best", BEST): "checkpoint.best: there is no validation; set data.validation",
    (
        "--checkpoint.best",
        BEST,
        "--data.validation",
        "PAIRS",
    ): "checkpoint.best: .* no choice; set train.validate_every",
    ("--checkpoint.best", BEST, "--data.validation", "PAIRS", "--train.validate_every", "1"): (
        "best.metric: validation/reward/margin is no metric of .*; did you mean validation/rewards/margins[?]"
    ),
}


@pytest.mark.parametrize("overrides", KEYS)
def test_config_keys(world: World, overrides: tuple[str, ...]) -> None:
    words = [word.replace("PAIRS", str(world.pairs)) for word in overrides]
    assert_matches(KEYS[overrides], world.refused(*words))


@pytest.mark.parametrize("command", ["train", "reference"])
def test_no_config_file(world: World, command: str, tmp_path: Path) -> None:
    assert run([command, str(tmp_path / "none.yaml")]) == 2
    assert_matches("none.yaml: cannot read the config", world.capsys.readouterr().err)


def test_a_folder_in_place_of_a_config(world: World, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.yaml").write_text("{}")
    assert run(["train", str(tmp_path / "here")]) == 2
    assert_matches(
        "here: is a folder; give the config's file, such as .*here/config.yaml", world.capsys.readouterr().err
    )


def test_a_tab_in_a_config(world: World, tmp_path: Path) -> None:
    (tmp_path / "tab.yaml").write_text("model:\n\tpath: model\n")
    assert run(["train", str(tmp_path / "tab.yaml")]) == 2
    assert_matches("tab.yaml: .*line 2 is indented by a tab, YAML takes spaces alone", world.capsys.readouterr().err)


def test_tokenizer_without_chat_template(world: World) -> None:
    (world.model / "chat_template.jinja").unlink()
    message = world.refused()
    assert_matches("hf: the tokenizer has no chat template; set data.chat_template to .* or to 'none'", message)


def test_run_folder_of_another_config(world: World) -> None:
    world.run_folder.mkdir()
    other = config_from_dict({**world.tree(), "loss": {"name": "dpo", "beta": 0.3}}, origin="test")
    (world.run_folder / "config.yaml").write_text(dump_config(other))
    message = world.refused()
    assert_matches("run.dir: .*/run belongs to a run with loss.name = 'dpo', not 'dpop'; choose a new run.dir", message)


def test_run_folder_that_holds_something_else(world: World) -> None:
    world.run_folder.mkdir()
    (world.run_folder / "thesis.tex").write_text("text")
    assert_matches("run.dir: .*/run holds other files and no run; choose", world.refused())


LABELS = {"prompt": "w1", "completion": "w2", "label": True}
MESSAGES = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}


@pytest.mark.parametrize(
    ("row", "loss", "expected"),
    [
        (LABELS, "dpop", "no pair data can be made; .* loss.name kto or sft"),
        (MESSAGES, "dpo", "no pair data can be made; .* loss.name sft"),
        (MESSAGES, "kto", "no single data can be made; .* loss.name sft"),
        (LABELS, "aft", "no group data can be made; .* loss.name kto or sft"),
    ],
)
def test_data_that_the_loss_cannot_take(world: World, row: dict, loss: str, expected: str) -> None:
    world.write_rows(row, row)
    message = world.refused(tree={**world.tree(), "loss": {"name": loss}})
    assert_matches(f"pairs.jsonl: holds .* {expected}", message)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_ends_the_command_quietly(world: World, options: list[str]) -> None:
    """`megatron-dpop data inspect FILE | head -n 0`: no traceback from a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    finished = subprocess.run(
        [sys.executable, "-m", "megatron_dpop", "data", "inspect", str(world.pairs), *options],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert finished.returncode == 1
    assert finished.stderr == ""


def assert_matches(pattern: str, line: str) -> None:
    assert re.search(pattern, line), f"{line!r} does not match {pattern!r}"
