"""Rates of a training step, for metrics: what it did of use, over the seconds that it took."""

import resource
from functools import lru_cache

import torch

from dpop_base.architectures import Architecture
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.plan.flops import training_flops
from megatron_dpop.plan.hardware import known_device
from megatron_dpop.runtime.devices import on_gpu


def speed_metrics(
    architecture: Architecture, lora: LoraConfig | None, source: RowSource, step: int, seconds: float, devices: int
) -> dict[str, float]:
    """Rates of a training step that took `seconds`; FLOPs count useful work (`megatron_dpop.plan.flops`).

    `perf/mfu` (model FLOPs over the devices' stated bf16 peak, with FP8 too) is absent where no peak is known.
    """
    examples = source.examples_of_step(step)
    tokens = int(source.shapes.row_tokens[examples].sum())
    flops = training_flops(
        architecture,
        lora,
        tokens=tokens,
        scores=int(source.shapes.scores[examples].sum()),
        attended=int(source.shapes.attended[examples].sum()),
    )
    per_device = flops / seconds / devices
    peak = device_peak_flops()
    return {
        "perf/step_seconds": seconds,
        "perf/pairs_per_second": len(examples) / seconds,
        "perf/tokens_per_second": tokens / seconds,
        "perf/model_tflops_per_device": per_device / 1e12,
        **({} if peak is None else {"perf/mfu": per_device / peak}),
        "perf/peak_memory_bytes": peak_memory_bytes(),
    }


@lru_cache(maxsize=1)
def device_peak_flops() -> float | None:
    """bf16 FLOP/s that this process's GPU is stated to reach; None for GPUs that we know nothing of, and for CPUs."""
    found = known_device(torch.cuda.get_device_name()) if on_gpu() else None
    return None if found is None else found.bf16_flops


def peak_memory_bytes() -> int:
    """This process's largest allocation so far: the GPU's, or resident memory on the CPU."""
    if on_gpu():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
