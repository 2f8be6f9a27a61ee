"""A run that cannot fit is refused by its own data's lengths, before a device is touched."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.plan.hardware import GIB
from megatron_dpop.training.inputs import check_fits_devices, dataset_workload, read_inputs
from tests.megatron_dpop.plan.shapes import QWEN_72B
from tests.tiny import write_config, write_model, write_pairs

H100 = {"device_name": "NVIDIA H100 80GB HBM3", "memory_bytes": int(79.1 * GIB)}


def test_refuses_what_cannot_fit_and_nothing_else(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    config = config_from_dict(write_config(tmp_path, tmp_path / "model"), origin="test")
    inputs = read_inputs(config, progress=False)
    check_fits_devices(config, inputs.architecture, inputs.train, devices=8, **H100)

    with pytest.raises(UserError, match=r"tensor 1 on 1 NVIDIA H100 80GB HBM3 needs .* the nearest layout that fits"):
        check_fits_devices(config, QWEN_72B, inputs.train, devices=1, **H100)
    eight = replace(config, parallel=replace(config.parallel, tensor=8, pipeline=5))
    check_fits_devices(eight, QWEN_72B, inputs.train, devices=40, **H100)
    with pytest.raises(UserError, match="does not divide 24 devices"):
        check_fits_devices(eight, QWEN_72B, inputs.train, devices=24, **H100)


def test_lengths_are_the_datas_own(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    config = config_from_dict(write_config(tmp_path, tmp_path / "model"), origin="test")
    dataset = read_inputs(config, progress=False).train
    workload = dataset_workload(config, dataset)
    lengths = dataset.lengths()
    read = lengths.completion_tokens.sum(axis=1) - 2  # last tokens are scored and not read
    assert workload.examples == config.train.global_batch_pairs
    assert workload.unshared.tokens == pytest.approx((2 * lengths.prompt_tokens + read).mean())
    assert workload.packed.tokens < workload.unshared.tokens
