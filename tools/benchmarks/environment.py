"""Where numbers were taken: they mean little without it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "megatron-core", "transformers", "trl", "transformer-engine")
# What decides how fast matrix products are, as /proc/cpuinfo names it.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions, processor and threads, or the GPU."""
    import torch

    from megatron_dpop.runtime.devices import on_gpu

    found: dict[str, Any] = {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        **_processor(),
    }
    if on_gpu():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(part.split(":", 1) for part in lines if ":" in part)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(named.get("flags", "").split())
    return {
        "processor": named.get("model name", platform.processor()),
        "features": [feature for feature in CPU_FEATURES if feature in flags],
    }


def one_line(found: dict[str, Any]) -> str:
    """Describes the environment for the head of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    device = found.get("gpu") or f"{found['processor']} ({', '.join(found['features'])})"
    return f"{device}; {found['threads']} threads; {versions}"
