"""Folders that want more than to be converted: links to other people's files, sizes without end, pipes."""

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.tensors.pickles import load_dcp_metadata, load_saved
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_small("smollm2", tmp_path / "hf").folder


def test_a_link_out_of_the_folder_is_not_copied(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x")
    (model / "LICENSE").symlink_to(secret)
    with pytest.raises(UserError, match=r"LICENSE: is a link to .*secret, outside the model's folder"):
        hf_to_megatron(model, tmp_path / "out", progress=False)
    assert not any(b"root:x" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_links_within_the_folder_and_of_the_hubs_cache_are_followed(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (model / "LICENSE").write_text("free")
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    (snapshot / "README.md").symlink_to("LICENSE")
    hf_to_megatron(snapshot, tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "huggingface" / "README.md").read_text() == "free"


SIZES = {
    "num_hidden_layers": (10**9, "at most"),
    "vocab_size": (10**15, "at most"),
    "rope_theta": (float("inf"), "positive number"),
    "intermediate_size": ([64], "positive whole number"),
    "num_attention_heads": (10**400, "at most"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_without_end_are_refused_at_once(name: str, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config.pop("rope_parameters", None)
    (model / "config.json").write_text(json.dumps({**config, name: SIZES[name][0]}))
    began = time.process_time()
    with pytest.raises(UserError, match=SIZES[name][1]):
        read_architecture(model)
    assert run(["hf-to-megatron", str(model), str(tmp_path / "out"), "--dry-run"]) == 2
    assert time.process_time() - began < 2


DOUBLED = b")" + b"2\x86" * 60  # an empty tuple, twice in the next, twice in the next, ...
BOMBS = {
    "a doubled tuple": b"\x80\x02" + DOUBLED + b".",
    "a doubled tuple as a key": b"\x80\x02}" + DOUBLED + b"K\x01s.",
    "a table of 16 GiB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a long line of nothing": b"\x80\x02" + b"(" * 100_000,
    "text that is cut short": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "a tensor of no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_cost_little(name: str) -> None:
    began = time.process_time()
    for load in (load_saved, load_dcp_metadata):
        with pytest.raises(pickle.UnpicklingError):
            load(BOMBS[name])
    assert time.process_time() - began < 2


def test_a_pipe_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (model / name).unlink()
        os.mkfifo(model / name)
        assert run(["hf-to-megatron", str(model), str(tmp_path / "out"), "--quiet"]) == 2
