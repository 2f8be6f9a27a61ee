"""Checkpoints of other tools: those of one layout are read, others are named with the way out."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.verify import verify
from checkpoint_convert.weights import check_weights
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small


def put_prefix(torch_dist: Path, prefix: str) -> None:
    """Names tensors as a wrapper of the model does: `prefix` before each."""
    metadata = FileSystemReader(torch_dist).read_metadata()
    metadata.state_dict_metadata = {prefix + key: value for key, value in metadata.state_dict_metadata.items()}
    metadata.storage_data = {
        MetadataIndex(prefix + index.fqn, index.offset, index.index): value
        for index, value in metadata.storage_data.items()
    }
    (torch_dist / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    save_small("qwen2", folder / "hf")
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    return folder


def test_nemo_2(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nemo = tmp_path / "nemo"
    shutil.copytree(converted / "megatron" / "release", nemo / "weights")
    put_prefix(nemo / "weights", "module.")
    (nemo / "weights" / "common.pt").unlink()
    (nemo / "context").mkdir()
    (nemo / "context" / "model.yaml").write_text("config: {num_layers: 4, rotary_base: 1000000}\n")
    assert run(["megatron-to-hf", str(nemo), str(tmp_path / "out"), "--quiet"]) == 2
    assert "is a NeMo 2 checkpoint" in capsys.readouterr().err
    assert run(["megatron-to-hf", str(nemo), str(tmp_path / "out"), "--config", str(converted / "hf"), "--quiet"]) == 0
    assert verify(tmp_path / "out", converted / "hf", progress=False).equal
    shutil.copytree(converted / "hf", nemo / "huggingface")
    assert verify(nemo, converted / "hf", progress=False).equal
    with pytest.raises(UserError, match="convert it first"):  # Megatron-Core would not find its names
        check_weights(nemo)


def test_megatron_bridge(converted: Path, tmp_path: Path) -> None:
    bridge = tmp_path / "bridge"
    shutil.copytree(converted / "megatron" / "release", bridge / "iter_0000100")
    put_prefix(bridge / "iter_0000100", "model.module.")
    (bridge / "latest_checkpointed_iteration.txt").write_text("100")
    run_config = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4}
    run_config |= {"num_query_groups": 2, "rotary_base": 1000000.0, "layernorm_epsilon": 1e-5, "vocab_size": 101}
    run_config |= {"share_embeddings_and_output_weights": False, "add_qkv_bias": True, "seq_length": 256}
    (bridge / "iter_0000100" / "run_config.yaml").write_text(json.dumps({"model": run_config}))
    (bridge / "iter_0000100" / "tokenizer").mkdir()
    (bridge / "iter_0000100" / "tokenizer" / "tokenizer.json").write_text("{}")
    (bridge / "iter_0000100" / "common.pt").unlink()
    assert run(["megatron-to-hf", str(bridge), str(tmp_path / "out"), "--from-args", "qwen2", "--quiet"]) == 0
    assert verify(tmp_path / "out", converted / "hf", progress=False).equal
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("files", "named", "way_out"),
    [
        ({"iter_0000100/.metadata": "", "iter_0000100/metadata.json": '{"sharded_backend": "fsdp_dtensor"}'},
         "fsdp_dtensor", "--ckpt-format torch_dist"),
        ({"iter_0000100/.metadata": ""}, "torch_dcp", "metadata.json"),
        ({"iter_0000100/metadata.json": '{"sharded_backend": "zarr"}', "iter_0000100/.metadata": ""},
         "zarr", "--ckpt-format torch_dist"),
        ({"iter_0000100/mp_rank_00/model_optim_rng.pt": ""}, "legacy torch", "--ckpt-convert-format torch_dist"),
        ({"iter_0000100/mp_rank_00_003/model_optim_rng.pt": ""}, "legacy torch", "--ckpt-convert-save"),
        ({"iter_0000100/mp_rank_00_model_states.pt": ""}, "DeepSpeed", "zero_to_fp32.py"),
    ],
)  # fmt: skip
def test_other_formats_of_megatron_are_named(
    files: dict[str, str], named: str, way_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"latest_checkpointed_iteration.txt": "100", "huggingface/config.json": "{}", **files}.items():
        path = tmp_path / "checkpoint" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for given in (tmp_path / "checkpoint", tmp_path / "checkpoint" / "iter_0000100"):
        assert run(["megatron-to-hf", str(given), str(tmp_path / "out"), "--quiet"]) == 2
        said = capsys.readouterr().err
        assert named in said
        assert way_out in said
    assert not (tmp_path / "out").exists()


def test_a_trainers_checkpoint_with_the_weights_beside_its_own_is_read(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted / "hf", tmp_path / "checkpoint-500"))
    (folder / "global_step500").mkdir()
    for name in ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (folder / "global_step500" / name).touch()
    hf_to_megatron(folder, tmp_path / "megatron", progress=False)
    assert verify(tmp_path / "megatron", converted / "hf", progress=False).equal


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("consolidated.00.pth", "author's own format"),
        ("model.gguf", "GGUF"),
        ("model.nemo", ".nemo"),
        ("adapter_config.json", "--base"),
        ("global_step10/mp_rank_00_model_states.pt", "DeepSpeed"),
    ],
)
def test_folders_that_are_no_checkpoint_of_ours_are_named(file: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / file
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    with pytest.raises(UserError, match=named):
        hf_to_megatron(tmp_path / "folder", tmp_path / "out", progress=False)
