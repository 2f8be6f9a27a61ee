"""Options that Megatron-Core or Transformer Engine cannot carry together are refused by both keys."""

from typing import Any

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.together import check_together

OVERLAP = {"parallel": {"tensor": 2, "overlap_tensor": True}}
EIGHT = {"fp8": "tensorwise", "fp8_params": True}


def _check(sections: dict[str, Any]) -> None:
    check_together(config_from_dict({"model": {"path": "m"}, "data": {"train": "d"}, **sections}, origin="test"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({**OVERLAP, "precision": {"fp8": "blockwise"}}, "parallel.overlap_tensor: .* precision.fp8: blockwise"),
        (
            {"kernels": {"attention": "cudnn"}, "precision": {"params": "fp32"}},
            "kernels.attention: .* precision.params: fp32",
        ),
        ({**OVERLAP, "precision": {"params": "fp32"}}, "parallel.overlap_tensor: .* precision.params: fp32"),
        ({**OVERLAP, "lora": {"rank": 8}}, "parallel.overlap_tensor: .* lora: adapters"),
        (
            {"precision": EIGHT, "optimizer": {"distributed": False}},
            "precision.fp8_params: .*optimizer.distributed: false",
        ),
        ({"precision": EIGHT, "optimizer": {"offload": True}}, "optimizer.offload: .* precision.fp8_params: true"),
        (
            {"precision": {"params": "fp32"}, "optimizer": {"offload": True}},
            "optimizer.offload: .*precision.params: fp32",
        ),
        ({"optimizer": {"offload": True, "distributed": False}}, "optimizer.offload: .* optimizer.distributed: false"),
        ({"optimizer": {"offload": True, "state": "bf16"}}, "optimizer.offload: .* optimizer.state: bf16"),
        ({"optimizer": {"state": "bf16", "distributed": False}}, "optimizer.state: .* optimizer.distributed: false"),
        (
            {"optimizer": {"schedule": "constant", "min_lr": 1e-6}},
            "optimizer.min_lr: a constant schedule does not fall",
        ),
        ({"optimizer": {"lr": 1e-6, "min_lr": 1e-5}}, "optimizer.min_lr: 1e-05 is more than optimizer.lr 1e-06; give"),
        ({"experts": {"freeze_router": True}, "lora": {"rank": 8}}, "experts.freeze_router: .* lora: adapters"),
        ({"optimizer": {"decay_share": 0.2}}, "optimizer.decay_share: has no effect on schedule cosine; set"),
        ({"train": {"offload_activations": True, "recompute": "full"}}, "offload_activations: .*train.recompute: full"),
        (
            {"train": {"offload_activations": True}, "precision": {"params": "fp32"}},
            "offload_activations: .*precision.params: fp32",
        ),
    ],
)
def test_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(sections)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {**OVERLAP, "precision": {"fp8": "tensorwise"}},
        {"precision": {"fp8": "delayed", "fp8_params": True}, "optimizer": {"offload": True}},
        {"optimizer": {"state": "bf16"}, "precision": {"fp8": "blockwise", "fp8_params": True}},
        {"train": {"offload_activations": True, "recompute": "selective"}},
    ],
)
def test_allowed(sections: dict[str, Any]) -> None:
    _check(sections)
