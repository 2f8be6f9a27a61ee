"""Which device this process trains on."""

import os
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.runtime import cpu_backend

DEVICE_VARIABLE = "MEGATRON_DPOP_DEVICE"

# Read when a device is first used or Transformer Engine is imported; the SLURM scripts say more of the first two.
GPU_SETTINGS = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # keeps communication before the product that it overlaps
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows differ in length, blocks must serve all of them
    "NVTE_CPU_OFFLOAD_V1": "1",  # the form to which Megatron-Core's offloading of activations speaks
}

BIND_NOW = (
    "LD_BIND_NOW is set: Transformer Engine's library names a symbol that nothing exports and nothing calls, "
    "and does not load where all symbols are looked up at once; unset it"
)


def on_gpu() -> bool:
    """True where an NVIDIA GPU is present and the CPU was not asked for by MEGATRON_DPOP_DEVICE=cpu."""
    return (
        os.environ.get(DEVICE_VARIABLE, "").lower() != "cpu"
        and not cpu_backend.installed()
        and torch.cuda.is_available()
    )


def prepare_device(local_rank: int) -> torch.device:
    """Selects this process's GPU, or installs the CPU backend. Call it before importing `megatron.core`."""
    if on_gpu():
        if os.environ.get("LD_BIND_NOW") and local_rank == 0:
            print(f"megatron-dpop: warning: {BIND_NOW}", file=sys.stderr)
        for name, value in GPU_SETTINGS.items():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    cpu_backend.install()
    return cpu_backend.CPU


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device. The host goes on at once: pinned memory is copied when the device comes to it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
