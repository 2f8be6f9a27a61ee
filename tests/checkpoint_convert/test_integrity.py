"""What a conversion wrote is checked when it is read: any flipped bit is found, or is one that nothing depends on."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from checkpoint_convert.commands import run
from checkpoint_convert.conversion.journal import JOURNAL
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.manifest import MANIFEST
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from checkpoint_convert.verify import verify
from checkpoint_convert.weights import check_converted, check_weights
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small

FLIPS = 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity")
    save_small("qwen2", folder / "source", torch.bfloat16)
    (folder / "source" / "tokenizer.json").write_text(json.dumps({"vocab": list(range(5000))}))
    hf_to_megatron(folder / "source", folder / "megatron", progress=False)
    megatron_to_hf(folder / "megatron", folder / "hf", progress=False)
    return folder


def _flip(folder: Path, draw: random.Random) -> tuple[Path, int]:
    """A bit of a file drawn evenly, at a place drawn evenly."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return path, at


@pytest.mark.parametrize("kind", ["megatron", "hf"])
def test_a_flipped_bit_is_found_or_without_effect(folders: Path, kind: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    found = 0
    for number in range(FLIPS):
        broken = tmp_path / str(number)
        shutil.copytree(folders / kind, broken)
        path, at = _flip(broken, draw)
        place = f"byte {at} of {path.relative_to(broken)}"
        error = ""
        try:
            check_weights(broken)
            equal = verify(folders / "source", broken, progress=False).equal
        except UserError as refused:
            error = str(refused)
            found += 1
        if error:
            assert str(broken) in error, place
            assert "\n" not in error
        else:
            assert equal, f"{place}: other weights, and no word"
            assert path.suffix == ".distcp" or path.name == MANIFEST, place  # names and times within an archive
    assert found > FLIPS * 0.8


def test_every_byte_of_weights_and_of_small_files_counts(folders: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json"):
        size = (folders / "hf" / name).stat().st_size
        for at in (0, 9, size // 2, size - 1):
            broken = tmp_path / f"{name}.{at}"
            shutil.copytree(folders / "hf", broken)
            data = bytearray((broken / name).read_bytes())
            data[at] ^= 1
            (broken / name).write_bytes(data)
            with pytest.raises(UserError, match=name):
                check_converted(broken)


def test_the_command_names_the_file_and_exits_with_2(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "megatron"
    shutil.copytree(folders / "megatron", broken)
    path = broken / "release" / "__0_0.distcp"
    source = TorchDistSource(broken / "release")
    first = source._first_element(
        source._chunks["decoder.layers.mlp.linear_fc2.weight"][1], "decoder.layers.1.mlp.linear_fc2.weight"
    )
    source.close()
    data = bytearray(path.read_bytes())
    data[first + 100] ^= 0x10
    path.write_bytes(data)
    assert run(["megatron-to-hf", str(broken), str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert f"{path}: is damaged: " in error
    assert error.count("\n") == 1


def test_a_file_that_was_edited_is_named_with_the_way_out(folders: Path, tmp_path: Path) -> None:
    edited = tmp_path / "hf"
    shutil.copytree(folders / "hf", edited)
    (edited / "README.md").write_text("added")
    check_converted(edited)
    (edited / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"generation_config.json: is not as it was written .*delete .*manifest"):
        check_weights(edited)
    (edited / MANIFEST).unlink()
    check_weights(edited)


def test_a_restored_shard_mends_a_failed_conversion(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "megatron", tmp_path / "source")
    (tmp_path / "source" / MANIFEST).unlink()
    shard = tmp_path / "source" / "release" / "__0_0.distcp"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="distcp"):
        megatron_to_hf(tmp_path / "source", tmp_path / "target", progress=False)
    assert (tmp_path / "target" / JOURNAL).exists()
    shard.write_bytes(whole)
    os.utime(shard, ns=(1, 1))
    megatron_to_hf(tmp_path / "source", tmp_path / "target", progress=False)
    assert verify(folders / "source", tmp_path / "target", progress=False).equal


def test_a_source_that_was_touched_is_the_same_and_one_that_changed_is_not(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoint_convert.tensors.source.SMALL_BYTES", 2000)  # so that weights go by their time
    shutil.copytree(folders / "source", tmp_path / "source")
    hf_to_megatron(tmp_path / "source", tmp_path / "target", progress=False)
    before = (tmp_path / "target" / "release" / "__0_0.distcp").stat()
    for path in (tmp_path / "source").iterdir():
        os.utime(path, ns=(7, 7))
    hf_to_megatron(tmp_path / "source", tmp_path / "target", progress=False)
    hf_to_megatron(tmp_path / "source", tmp_path / "target", progress=False)
    assert (tmp_path / "target" / "release" / "__0_0.distcp").stat() == before
    weights = tmp_path / "source" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="was converted from this source before that changed"):
        hf_to_megatron(tmp_path / "source", tmp_path / "target", progress=False)
