"""Folders as they lie about: what is converted is what transformers loads of them."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.tensors.torch_dtypes import TORCH
from checkpoint_convert.verify import open_checkpoint
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Shards = list[dict[str, Tensor]]


def halves(tensors: dict[str, Tensor]) -> Shards:
    names = sorted(tensors)
    return [{n: tensors[n] for n in part} for part in (names[: len(names) // 2], names[len(names) // 2 :])]


def write_shards(folder: Path, shards: Shards, *, index: dict[str, str] | None = None, suffix: str = "") -> None:
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    found = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    table = {"metadata": {}, "weight_map": found | (index or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def stale_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    gone = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": gone}))


def single_file_beside_old_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(folder, halves({name: tensor + 1 for name, tensor in tensors.items()}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index_lists_what_no_shard_holds(folder: Path, tensors: dict[str, Tensor]) -> None:
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": "model-00001-of-00002.safetensors" for i in range(4)}
    write_shards(folder, halves(tensors), index=buffers)


def shard_holds_more_than_its_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(folder, halves(tensors))
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())["weight_map"]
    path.write_text(json.dumps({"metadata": {}, "weight_map": {n: f for n, f in table.items() if "layers.2" not in n}}))


def tensor_in_two_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    one, two = halves(tensors)
    write_shards(
        folder, [one, {**two, EMBEDDING: tensors[EMBEDDING], "model.norm.weight": tensors["model.norm.weight"]}]
    )


def old_buffers(folder: Path, tensors: dict[str, Tensor]) -> None:
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(4)}
    buffers["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors | buffers, folder / "model.safetensors", metadata={"format": "pt"})


def safetensors_beside_bin(folder: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    write_shards(folder, halves(tensors))


def bin_before_zip(folder: Path, tensors: dict[str, Tensor]) -> None:
    whole = torch.cat([tensors["model.norm.weight"], torch.zeros(3)])  # a view of a larger storage
    other = {"model.norm.weight": whole[:64], "model.layers.0.self_attn.masked_bias": torch.tensor([1, 2])}
    torch.save(tensors | other, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def bin_shards_before_zip(folder: Path, tensors: dict[str, Tensor]) -> None:
    table = {}
    for at, shard in enumerate(halves(tensors), start=1):
        name = f"pytorch_model-{at:05d}-of-00002.bin"
        torch.save(shard, folder / name, _use_new_zipfile_serialization=at == 2)
        table |= dict.fromkeys(shard, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("source") / "hf"
    save_small("qwen2", folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def check_same_as_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with closing(open_checkpoint(folder)) as source:
        expected = dict(model.named_parameters())
        assert set(source.tensors) == set(expected)
        for name, info in source.tensors.items():
            data = bytearray(info.num_bytes)
            source.read_rows(name, 0, info.shape[0], memoryview(data))
            assert torch.equal(torch.frombuffer(data, dtype=TORCH[info.dtype]).view(info.shape), expected[name])


@pytest.mark.parametrize(
    "write",
    [
        stale_index,
        single_file_beside_old_shards,
        index_lists_what_no_shard_holds,
        shard_holds_more_than_its_index,
        tensor_in_two_shards,
        old_buffers,
        safetensors_beside_bin,
        bin_before_zip,
        bin_shards_before_zip,
    ],
)
def test_of_every_folder_what_transformers_loads(
    write: Callable[[Path, dict[str, Tensor]], None],
    tensors: tuple[dict[str, Any], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tensors[0]))
    write(tmp_path, tensors[1])
    check_same_as_transformers(tmp_path)


@pytest.mark.parametrize("kept", [HEAD, EMBEDDING])
@pytest.mark.parametrize("listed", [False, True])
def test_tied_weights_under_either_name(
    kept: str, listed: bool, tensors: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tensors[0] | {"tie_word_embeddings": True}))
    other = EMBEDDING if kept == HEAD else HEAD
    left = {(kept if name == EMBEDDING else name): tensor for name, tensor in tensors[1].items() if name != HEAD}
    write_shards(tmp_path, halves(left), index={other: "model-00001-of-00002.safetensors"} if listed else None)
    check_same_as_transformers(tmp_path)
    hf_to_megatron(tmp_path, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", progress=False)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING], left[kept])


def test_a_tensor_that_differs_between_shards_is_refused(
    tensors: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tensors[0]))
    one, two = halves(tensors[1])
    name = next(iter(one))
    write_shards(tmp_path, [one, {**two, name: one[name] + 1}])
    with pytest.raises(UserError, match="is another one in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("at", [0.02, 0.5, 0.999])
def test_a_truncated_file_of_before_zip(
    at: float, tensors: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tensors[0]))
    bin_before_zip(tmp_path, tensors[1])
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])
    with pytest.raises(UserError, match="not a file of torch"):
        open_checkpoint(tmp_path)


def test_all_of_a_tokenizer_travels(tensors: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path) -> None:
    files = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "chat_template.jinja",
    )
    files += (
        "chat_template.json",
        "processor_config.json",
        "preprocessor_config.json",
        "qwen.tiktoken",
        "added_tokens.json",
    )
    files += ("additional_chat_templates/tool_use.jinja", "generation_config.json")
    source = tmp_path / "hf"
    (source / "additional_chat_templates").mkdir(parents=True)
    save_file(tensors[1], source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(tensors[0]))
    for file in files:
        (source / file).write_text(f'"{file}"')
    hf_to_megatron(source, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", dtype="bf16", progress=False)
    assert [file for file in files if (tmp_path / "out" / file).read_bytes() != (source / file).read_bytes()] == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
