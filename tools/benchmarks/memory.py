"""Peak memory of this process, from a moment on, and the end of what its device still computes."""

from pathlib import Path

import torch

from megatron_dpop.runtime.devices import on_gpu


def reset_peak() -> None:
    """Lets `peak_bytes` count from now on."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark of resident memory


def peak_bytes() -> int:
    """The GPU's largest allocation, or on the CPU the process's largest resident memory (Linux)."""
    return int(torch.cuda.max_memory_allocated()) if on_gpu() else _status_bytes("VmHWM")


def finish_launched() -> None:
    """Waits for a GPU, before a clock is read."""
    if on_gpu():
        torch.cuda.synchronize()


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
