"""What a machine without GPU, or a model's shape, does not allow is refused by key, value and fix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from megatron_dpop.config.layout import ModelLayout
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.precision import check_precision
from tests.distributed import run_ranks
from tests.tiny import write_model

FP8 = {"precision": {"fp8": "tensorwise"}}
RECIPES = [
    {"fp8": "tensorwise", "bf16_end_layers": 1},
    {"fp8": "blockwise", "fp8_params": True},
    {"fp8": "delayed"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def _tree(**sections: Any) -> dict[str, Any]:
    return {"model": {"path": "m"}, "data": {"train": "d"}, **sections}


def _check(
    folder: Path,
    sections: dict[str, Any],
    *,
    gpu: bool,
    tensor: int = 1,
    pipeline: int = 1,
    row_tokens: int = 8192,
    **shape: int,
) -> None:
    architecture = replace(read_architecture(folder), **shape)
    tree = _tree(**sections)
    tree["data"]["row_tokens"] = row_tokens
    check_precision(config_from_dict(tree, origin="test"), architecture, ModelLayout(tensor, pipeline), gpu=gpu)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (FP8, "precision.fp8: tensorwise needs an NVIDIA GPU"),
        ({"optimizer": {"offload": True}}, "optimizer.offload: true needs an NVIDIA GPU"),
        ({"optimizer": {"state": "bf16"}}, "optimizer.state: bf16 needs an NVIDIA GPU"),
        ({"train": {"offload_activations": True}}, "train.offload_activations: true needs"),
        ({"parallel": {"overlap_tensor": True}}, "parallel.overlap_tensor: true needs an NVIDIA GPU"),
        ({"kernels": {"attention": "cudnn"}}, "kernels.attention: cudnn needs an NVIDIA GPU"),
        ({"precision": {"fp8_params": True}}, "precision.fp8_params: means nothing without precision.fp8"),
    ],
)
def test_a_machine_without_gpu(folder: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(folder, sections, gpu=False)


@pytest.mark.parametrize(
    ("precision", "shape", "message"),
    [
        ({"params": "fp32"}, {}, "precision.params: fp32 does not go with precision.fp8"),
        ({"fp8": "delayed", "bf16_end_layers": 1}, {}, "precision.bf16_end_layers: delayed scaling takes all layers"),
        ({"bf16_end_layers": 2}, {}, "2 at each end leave none of the model's 4 layers"),
        ({"bf16_end_layers": 1}, {"pipeline": 8}, "1 are more than the 0 layers of a pipeline stage"),
        ({}, {"row_tokens": 8200}, "data.row_tokens: 8200 is not a multiple of 128"),
        ({}, {"hidden_size": 72}, "hidden size, 72, is not a multiple of 16"),
        ({}, {"ffn_hidden_size": 88, "tensor": 2}, "FFN rows of a tensor-parallel rank, 44, is not a multiple of 16"),
        ({}, {"head_dim": 12}, "key/value rows of a tensor-parallel rank, 24, is not"),
    ],
)
def test_what_fp8_does_not_take(folder: Path, precision: dict, shape: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(folder, {"precision": {"fp8": "tensorwise", **precision}}, gpu=True, **shape)


def test_a_shape_that_fp8_takes(folder: Path) -> None:
    _check(folder, FP8, gpu=True, tensor=2)


def _megatron_configs(folder: str) -> list[tuple[str, bool, int]]:
    """What Megatron-Core makes of each recipe, after its own checks."""
    import torch

    from megatron_dpop.engine.engine import model_options
    from megatron_dpop.models.build import transformer_config

    found = []
    for precision in RECIPES:
        options = model_options(config_from_dict(_tree(precision=precision), origin="test"))
        architecture = read_architecture(Path(folder))
        config = transformer_config(architecture, ModelLayout(), params_dtype=torch.bfloat16, **options)
        found.append((config.fp8_recipe, config.fp8_param, config.num_layers_at_end_in_bf16))
    return found


def test_megatron_accepts_every_recipe(folder: Path) -> None:
    (found,) = run_ranks(_megatron_configs, 1, str(folder))
    assert found == [("tensorwise", False, 1), ("blockwise", True, 0), ("delayed", False, 0)]
