"""Which device this process trains on."""

import os

import torch

from megatron_dpop.runtime import cpu_backend

DEVICE_VARIABLE = "MEGATRON_DPOP_DEVICE"

# Read when a device is first used or Transformer Engine is imported; the SLURM scripts say more of the first two.
GPU_SETTINGS = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # keeps communication before the product that it overlaps
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows differ in length, blocks must serve all of them
    "NVTE_CPU_OFFLOAD_V1": "1",  # the form to which Megatron-Core's offloading of activations speaks
}


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
        for name, value in GPU_SETTINGS.items():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    cpu_backend.install()
    return cpu_backend.CPU
