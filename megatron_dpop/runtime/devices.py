"""Which device this process trains on."""

import os

import torch

from megatron_dpop.runtime import cpu_backend

DEVICE_VARIABLE = "MEGATRON_DPOP_DEVICE"


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
        # Read when Transformer Engine is imported: Megatron-Core's offloading of activations speaks to its first form.
        os.environ.setdefault("NVTE_CPU_OFFLOAD_V1", "1")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    cpu_backend.install()
    return cpu_backend.CPU
