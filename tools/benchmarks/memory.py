"""Peak memory of this process, from a moment on."""

from pathlib import Path

import torch


def reset_peak() -> None:
    """Lets `peak_bytes` count from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark of resident memory


def peak_bytes() -> int:
    """The GPU's largest allocation, or on the CPU the process's largest resident memory (Linux)."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status_bytes("VmHWM")


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
