"""What is installed, and what of the environment is known to break a run."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from functools import partial

import torch

from gpu_checks.finding import CheckResult, attempted

PACKAGES = ("torch", "megatron-core", "transformers", "triton")


def check(device: torch.device) -> Iterator[CheckResult]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield CheckResult("versions", "device", name, "", "-")
    for package in PACKAGES:
        yield from attempted("versions", package, partial(_version, package))
    if device.type != "cuda":
        return
    yield CheckResult("versions", "CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}", "", "-")
    yield from attempted("versions", "Transformer Engine", _transformer_engine)
    bound = os.environ.get("LD_BIND_NOW")
    yield CheckResult(
        "versions",
        "LD_BIND_NOW",
        bound or "unset",
        "unset",
        "MISS" if bound else "ok",
        "Transformer Engine's library does not load with it; unset it",
    )


def _version(package: str) -> Iterator[CheckResult]:
    yield CheckResult("versions", package, importlib.metadata.version(package), "", "ok")


def _transformer_engine() -> Iterator[CheckResult]:
    import transformer_engine.pytorch

    assert importlib.util.find_spec("transformer_engine_torch") or transformer_engine.pytorch
    yield CheckResult("versions", "Transformer Engine", importlib.metadata.version("transformer_engine"), "loads", "ok")
