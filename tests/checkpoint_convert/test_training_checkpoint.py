"""What Megatron-Core itself saved, cut over tensor ranks, padded, with optimizer state, exports to the true model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_convert.assets import copy_assets
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.locate import iteration_folder
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from dpop_base.checkpoint_names import TRACKER
from dpop_base.errors import UserError
from dpop_base.files import write_text
from tests.checkpoint_convert.models import CONFIGS, SMALL, save_small
from tests.distributed import run_ranks


def load_and_save(source: str, target: str, tensor: int, pipeline: int, pad_heads: bool, spoil: bool) -> None:
    """Loads a converted checkpoint at a layout and saves it again as training would, with an optimizer's moment."""
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.process_groups_config import ProcessGroupCollection

    from dpop_base.architectures import read_architecture
    from megatron_dpop.config.layout import ModelLayout
    from megatron_dpop.models.build import build_model, transformer_config

    parallel_state.initialize_model_parallel(tensor, pipeline)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    a = read_architecture(Path(source))
    (model,) = build_model(
        a,
        transformer_config(a, ModelLayout(tensor, pipeline, pad_heads=pad_heads), params_dtype=torch.float32),
        ProcessGroupCollection.use_mpu_process_groups(),
        transformer_engine=False,
    )
    state = model.sharded_state_dict()
    for key, value in state.items():
        if isinstance(value, ShardedTensor) and ("linear_qkv." in key or "linear_proj." in key):
            value.allow_shape_mismatch = pad_heads and "layer_norm" not in key
    model.load_state_dict(dist_checkpointing.load({"model": state}, str(iteration_folder(Path(source))))["model"])
    if spoil:  # an added head that is not inert: the last rank's last value rows
        with torch.no_grad():
            model.decoder.layers[0].self_attention.linear_qkv.weight[-1] = 1.0
    moment = ShardedTensor.from_rank_offsets(
        "optimizer.state.exp_avg.decoder.final_layernorm.weight",
        torch.ones(a.hidden_size),
        replica_id=torch.distributed.get_rank(),
    )
    state = {"model": model.sharded_state_dict(), "optimizer": {"moment": moment}, "iteration": 100}
    dist_checkpointing.save(state, target)


def train_like(tmp_path: Path, tensor: int, pipeline: int, *, pad_heads: bool = False, spoil: bool = False) -> Path:
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "iter_0000100").mkdir(parents=True)
    megatron = tmp_path / "megatron"
    arguments = (str(megatron), str(checkpoints / "iter_0000100"), tensor, pipeline, pad_heads, spoil)
    run_ranks(load_and_save, tensor * pipeline, *arguments)
    write_text(checkpoints / TRACKER, "100\n")
    (checkpoints / "huggingface").mkdir()
    copy_assets(tmp_path / "hf", checkpoints / "huggingface", "fp32")
    return checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_padded_vocabulary_and_optimizer_state(tensor: int, pipeline: int, tmp_path: Path) -> None:
    small = save_small("llama-attention-bias", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    checkpoints = train_like(tmp_path, tensor, pipeline)
    megatron_to_hf(checkpoints, tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == small.tensors.keys()
    assert all(torch.equal(back[name], value) for name, value in small.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [False, True])
def test_added_heads_are_dropped_only_if_they_are_zero(
    spoil: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {**SMALL, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}
    monkeypatch.setitem(CONFIGS, "three-groups", lambda: type(CONFIGS["qwen2"]())(**odd))
    small = save_small("three-groups", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    checkpoints = train_like(tmp_path, 2, 1, pad_heads=True, spoil=spoil)
    if spoil:
        with pytest.raises(UserError, match="what is beyond is not zero"):
            megatron_to_hf(checkpoints, tmp_path / "back", progress=False)
        return
    megatron_to_hf(checkpoints, tmp_path / "back", progress=False)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], value) for name, value in small.tensors.items())
