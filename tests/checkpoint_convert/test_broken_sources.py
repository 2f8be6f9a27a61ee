"""Sources that are damaged, contradictory or hostile: always one line, never a result."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.manifest import MANIFEST
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.verify import verify
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small


def shard(folder: Path, tensors: dict[str, Tensor], *, suffix: str = "safetensors", parts: int = 3) -> None:
    """Replaces the folder's weights by shards with an index."""
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05d}-of-{parts:05d}.{suffix}"
        mine = {name: tensors[name].clone() for name in names[part::parts]}
        weight_map |= dict.fromkeys(mine, file)
        if suffix == "safetensors":
            save_file(mine, folder / file)
        else:
            torch.save(mine, folder / file)
    index = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_of_either_kind_convert(suffix: str, tmp_path: Path) -> None:
    small = save_small("qwen2", tmp_path / "hf", torch.bfloat16)
    shard(tmp_path / "hf", small.tensors, suffix=suffix)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in small.tensors.items())


def test_a_view_in_a_bin_file_is_read_where_it_lies(tmp_path: Path) -> None:
    small = save_small("smollm2", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    flat = torch.cat([tensor.flatten() for tensor in small.tensors.values()])
    views, first = {}, 0
    for name, tensor in small.tensors.items():
        views[name] = flat[first : first + tensor.numel()].view(tensor.shape)
        first += tensor.numel()
    torch.save(views, tmp_path / "hf" / "pytorch_model.bin")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal


def _rewrite(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def _without_index(folder: Path) -> None:
    shard(folder, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors.index.json").unlink()


def _without_a_shard(folder: Path) -> None:
    shard(folder, load_file(folder / "model.safetensors"))
    (folder / "model-00002-of-00003.safetensors").unlink()


def _tensor_in_two_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    shard(folder, tensors)
    first, second = (folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    save_file({**load_file(second), next(iter(load_file(first))): torch.zeros(1)}, second)


def _index_leaves_the_folder(folder: Path) -> None:
    shard(folder, load_file(folder / "model.safetensors"))
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))


def _duplicate_in_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(n for n in header if n != "__metadata__")
    text = data[8 : 8 + size].rstrip()[:-1] + f',"{name}":{json.dumps(header[name])}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (_rewrite(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), "lacks model.layers.1.mlp.up"),
    "missing bias": (_rewrite(lambda t: t.pop("model.layers.2.self_attn.k_proj.bias")), "lacks .*k_proj.bias"),
    "extra tensor": (
        _rewrite(lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(64)})),
        "o_proj.bias, which the architecture has no place for",
    ),
    "extra layer": (
        _rewrite(lambda t: t.update({"model.layers.4.input_layernorm.weight": torch.ones(64)})),
        "model.layers.4.input_layernorm.weight, which",
    ),
    "wrong shape": (
        _rewrite(lambda t: t.update({"model.norm.weight": torch.ones(63)})),
        r"model.norm.weight \[63\] instead of \[64\]",
    ),
    "integer weights": (
        _rewrite(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int64)})),
        "model.norm.weight in I64",
    ),
    "mixed dtypes": (
        _rewrite(lambda t: t.update({"model.layers.0.input_layernorm.weight": torch.ones(64).half()})),
        "choose one with --dtype",
    ),
    "missing index": (_without_index, "no index.json"),
    "missing shard": (_without_a_shard, "cannot be opened"),
    "tensor in two shards": (_tensor_in_two_shards, "is another one in"),
    "index leaves the folder": (_index_leaves_the_folder, "weight_map"),
    "name twice in a header": (_duplicate_in_header, "same name twice"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_source_is_one_line_and_exit_2(
    breakage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_small("qwen2", tmp_path / "hf")
    change, message = BREAKAGES[breakage]
    change(tmp_path / "hf")
    with pytest.raises(UserError, match=message):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    capsys.readouterr()
    assert run(["hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("checkpoint-convert: error: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "megatron").exists()


def test_tied_model_with_a_head_of_its_own(tmp_path: Path) -> None:
    small = save_small("smollm2", tmp_path / "hf")
    tensors = {name: tensor.clone() for name, tensor in small.tensors.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)  # the same bits: a copy
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=r"differs from model.embed_tokens.weight"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "other", progress=False)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_never_pass(seed: int, tmp_path: Path) -> None:
    """Truncation anywhere is an error; other damage to the header is an error or leaves the tensors' places right."""
    save_small("smollm2", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    if seed % 2:
        path.write_bytes(data[: chance.randrange(len(data))])
        with pytest.raises(UserError):
            hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
        return
    size = int.from_bytes(data[:8], "little")
    for _ in range(3):
        data[chance.randrange(8 + size)] = chance.randrange(256)
    path.write_bytes(data)
    try:
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    except UserError:
        assert not (tmp_path / "megatron" / MANIFEST).exists()
    else:  # the damage hit spaces, or swapped places that fit: still exactly what the file now says
        assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_tries_to_run_code_is_refused(tmp_path: Path) -> None:
    small = save_small("qwen2", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    weights: dict[str, object] = {**small.tensors, "model.norm.weight": RunsCode(tmp_path / "ran")}
    torch.save(weights, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"refused, it names posix.system"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert not (tmp_path / "ran").exists()


def test_metadata_that_tries_to_run_code_is_refused(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    (tmp_path / "megatron" / MANIFEST).unlink()
    (tmp_path / "megatron" / "release" / ".metadata").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"refused, it names posix.system"):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_megatron_checkpoint_never_passes_silently(seed: int, tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    (tmp_path / "megatron" / MANIFEST).unlink()
    chance = random.Random(seed)
    path = tmp_path / "megatron" / "release" / (".metadata" if seed % 2 else "__0_0.distcp")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: chance.randrange(len(data) - 200)])
    with pytest.raises(UserError):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)
    assert not (tmp_path / "back" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("release/.metadata", r"has no \.metadata"),
        ("release/metadata.json", r"has no metadata\.json"),
        ("release/__0_0.distcp", "cannot be opened|cannot be read"),
        ("huggingface/config.json", "has no huggingface/config.json"),
        ("latest_checkpointed_iteration.txt", "holds neither"),
    ],
)
def test_incomplete_megatron_checkpoint(remove: str, message: str, tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    (tmp_path / "megatron" / remove).unlink()
    with pytest.raises(UserError, match=message):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", progress=False)


def test_fp16_that_cannot_hold_the_values(tmp_path: Path) -> None:
    small = save_small("qwen2", tmp_path / "hf")
    tensors = {name: tensor.clone() for name, tensor in small.tensors.items()}
    tensors["model.norm.weight"][7] = 1e5
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight: holds values beyond the range of fp16"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", dtype="fp16", progress=False)
