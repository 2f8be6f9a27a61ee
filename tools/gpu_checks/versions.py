"""What is installed, and what of the environment is known to break a run."""

import importlib.metadata
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
    from transformer_engine.pytorch import get_cudnn_version

    yield CheckResult("versions", "Transformer Engine", importlib.metadata.version("transformer_engine"), "loads", "ok")
    torchs, found = torch.backends.cudnn.version(), get_cudnn_version()
    wanted = (torchs // 10000, torchs // 100 % 100, torchs % 100)
    yield CheckResult(
        "versions",
        "cuDNN of Transformer Engine",
        ".".join(map(str, found)),
        ".".join(map(str, wanted)),
        "ok" if found == wanted else "MISS",
        "two cuDNNs cannot load parts of each other: set CUDNN_HOME to torch's (nvidia/cudnn in site-packages)",
    )
