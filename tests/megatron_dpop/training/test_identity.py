"""A run goes on only with what it began with, told by content: never by a path or a time alone."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import run_here


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "a" / "hf", num_hidden_layers=2)
    write_model(folder / "b" / "hf", num_hidden_layers=2, seed=1)
    return folder


@pytest.fixture
def world(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(models, tmp_path / "models")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    return tmp_path


def _tree(world: Path, *, steps: int = 2, loss: str = "dpop", run: str = "run", **sections: object) -> dict:
    return {
        **write_config(
            world,
            world / "models" / "a" / "hf",
            train={"steps": steps},
            checkpoint={"every": 1, "export_hf": True},
            run={"dir": str(world / run)},
            **sections,
        ),
        "loss": {"name": loss},
    }


def _edit(path: Path, change: Callable[[str], str]) -> None:
    """Changes a file's text and gives it its old time back."""
    status = path.stat()
    path.write_text(change(path.read_text()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _flip_inside(path: Path) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) * 995 // 1000] ^= 1  # in a layer, which no sample of a file's beginning and end would see
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _tokenizer(text: str) -> str:
    values = json.loads(text)
    values["model"]["vocab"]["w1"], values["model"]["vocab"]["w2"] = 6, 5
    return json.dumps(values)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "data": (
        lambda world: _edit(world / "pairs.jsonl", lambda text: text.replace("w1 ", "w2 ", 1)),
        "data.train: .*pairs.jsonl has changed since the run in .* began, .*; restore .* or choose a new run.dir",
    ),
    "weights": (
        lambda world: _flip_inside(world / "models" / "a" / "hf" / "model.safetensors"),
        "model.path: model.safetensors has changed since",
    ),
    "tokenizer": (
        lambda world: _edit(world / "models" / "a" / "hf" / "tokenizer.json", _tokenizer),
        "model.tokenizer: tokenizer.json has changed since",
    ),
    "template": (
        lambda world: _edit(world / "models" / "a" / "hf" / "chat_template.jinja", lambda text: "<user> " + text),
        "model.tokenizer: chat_template.jinja has changed since",
    ),
}


@pytest.mark.parametrize("loss", ["sft", pytest.param("dpop", marks=pytest.mark.slow)])
def test_a_run_does_not_go_on_with_something_else(world: Path, loss: str) -> None:
    """Each change in turn, undone after it; the run then ends as if nothing had been."""
    first, whole = _tree(world, loss=loss), _tree(world, steps=2, loss=loss, run="whole")
    kept = world / "kept"
    steps: list = [first, partial(shutil.copytree, world / "models", kept / "models")]
    for name in CHANGES:
        steps += [partial(_change, name, world), first, partial(_restore, world, kept)]
    outcomes = run_ranks(run_here, 1, *steps, first, whole)[0]
    for (_, expected), outcome in zip(CHANGES.values(), outcomes[1:], strict=False):
        assert re.search(expected, outcome.error or "it went on"), outcome.error
    assert outcomes[-2].error is None
    assert outcomes[-2].comparable() == outcomes[-1].comparable()


def _change(name: str, world: Path) -> None:
    CHANGES[name][0](world)


def _restore(world: Path, kept: Path) -> None:
    shutil.copytree(kept / "models", world / "models", dirs_exist_ok=True)
    write_pairs(world / "pairs.jsonl", 12)


def _begin_anew(world: Path) -> None:
    shutil.rmtree(world / "run" / "checkpoints")
    write_pairs(world / "pairs.jsonl", 12, seed=5)


@pytest.mark.slow
def test_a_run_made_anew_exports_anew(world: Path) -> None:
    tree = _tree(world)
    run = world / "run"
    other = {**tree, "run": {"dir": str(world / "other")}}
    first, anew, fresh = run_ranks(run_here, 1, tree, partial(_begin_anew, world), tree, other)[0]
    assert anew.comparable() == fresh.comparable() != first.comparable()
    assert f"{run / 'hf'} was exported from another checkpoint; it is now {run / 'hf.before-1'}" in anew.said
    exported = (run / "hf" / "model.safetensors").read_bytes()
    assert exported == (world / "other" / "hf" / "model.safetensors").read_bytes()
    assert exported != (run / "hf.before-1" / "model.safetensors").read_bytes()


_finish_export = []


def _let_exports_fail() -> None:
    """At an export's end: tensors are written, the manifest is not."""
    from checkpoint_convert import megatron_to_hf
    from dpop_base.errors import UserError

    def interrupted(*_: object) -> None:
        raise UserError("interrupted")

    _finish_export.append(megatron_to_hf._finish)
    megatron_to_hf._finish = interrupted


def _let_exports_end() -> None:
    from checkpoint_convert import megatron_to_hf

    megatron_to_hf._finish = _finish_export.pop()


def test_an_interrupted_export_goes_on(world: Path) -> None:
    tree, whole = _tree(world), _tree(world, run="whole")
    interrupted, resumed, _ = run_ranks(run_here, 1, _let_exports_fail, tree, _let_exports_end, tree, whole)[0]
    assert interrupted.error == "interrupted"
    assert resumed.error is None
    for path in sorted((world / "whole" / "hf").iterdir()):
        if path.name != "conversion-manifest.json":  # it names the time of its source
            assert path.read_bytes() == (world / "run" / "hf" / path.name).read_bytes(), path.name


def _touch(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, ns=(1, 1))


@pytest.mark.slow
def test_policy_and_reference_may_have_one_name_and_new_times(world: Path) -> None:
    reference = {"reference": {"model": str(world / "models" / "b" / "hf")}}
    tree, own = _tree(world) | reference, _tree(world, run="own")
    longer = {**tree, "checkpoint": {**tree["checkpoint"], "keep": 9}}
    first, touched, alone = run_ranks(run_here, 1, tree, partial(_touch, world / "models"), longer, own)[0]
    assert (first.error, touched.error) == (None, None)
    assert first.metrics[0]["reference/drift"] > 1 > alone.metrics[0]["reference/drift"]
    assert touched.comparable() == first.comparable()
    assert len(list((world / "run" / "initial").iterdir())) == 2


@pytest.mark.slow
def test_a_kept_reference_of_weights_that_differ_in_one_bit_is_refused(world: Path) -> None:
    """The bit stands where a sample of the first and last MiB of its file would not see it."""
    policy = write_model(world / "policy", num_hidden_layers=2, vocab_size=40_001)
    reference = Path(shutil.copytree(policy, world / "reference"))
    weights = reference / "model.safetensors"
    assert weights.stat().st_size > 16 << 20
    sections = {
        "model": {"path": str(policy)},
        "reference": {"model": str(reference), "cache": str(world / "cached")},
    }
    tree, other = _tree(world) | sections, _tree(world, run="other") | sections
    first, changed = run_ranks(run_here, 1, tree, partial(_flip_inside, weights), other)[0]
    assert first.error is None
    assert "train.safetensors was made from other weights" in (changed.error or "it went on")
