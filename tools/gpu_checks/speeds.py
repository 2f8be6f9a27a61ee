"""Rates of products, memory and collectives, beside what `megatron-dpop plan` assumes of them."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from gpu_checks.finding import CheckResult, attempted, within
from megatron_dpop.plan.hardware import ASSUMPTIONS, Hardware, known_device

SLOW = "another job on the device, a power or heat limit, or clocks set low: see nvidia-smi -q -d PERFORMANCE,CLOCK"
WIRES = "no NVLink, peer access switched off, or NCCL on another path: NCCL_DEBUG=INFO says which"
# Tokens, outputs, inputs of a 72B layer's products, and what tensor parallelism of 8 makes of one.
PRODUCTS = {
    "qkv": (8192, 10240, 8192),
    "fc1": (8192, 59136, 8192),
    "fc2": (8192, 8192, 29568),
    "fc2 / 8": (8192, 8192, 3696),
}
RECIPES = {"tensorwise": "Float8CurrentScaling", "blockwise": "Float8BlockScaling", "delayed": "DelayedScaling"}


def check(device: torch.device) -> Iterator[CheckResult]:
    gpu = device.type == "cuda"
    hardware = known_device(torch.cuda.get_device_name(device)) if gpu else None
    for name, shape in PRODUCTS.items() if gpu else (("small", (256, 512, 256)),):
        yield from attempted("rates", name, partial(_product, name, shape, device, hardware))
    yield from attempted("rates", "memory", lambda: _copy(device, hardware))
    if not gpu:
        return
    for recipe, kind in RECIPES.items():
        yield from attempted("rates", recipe, partial(_fp8, recipe, kind, hardware))
    if torch.cuda.device_count() > 1:
        yield from attempted("rates", "all-reduce", lambda: _collectives(hardware))


def seconds(work: Callable[[], Any], device: torch.device, *, for_seconds: float) -> float:
    """Median-like time of one call: as many as fit, the first left out."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < for_seconds:
        for _ in range(5):
            work()
        wait()
        calls += 5
    return (time.perf_counter() - started) / calls


def _bounds(share: float, peak: float | None) -> tuple[float | None, float | None]:
    """A quarter below what is assumed is a miss; more is not."""
    return (None if peak is None else 0.75 * share * peak), None


def _product(
    name: str, shape: tuple[int, int, int], device: torch.device, hardware: Hardware | None
) -> Iterator[CheckResult]:
    tokens, outputs, inputs = shape
    left = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    right = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
    took = seconds(lambda: left @ right.t(), device, for_seconds=0.5 if device.type == "cuda" else 0.1)
    share = ASSUMPTIONS.linear * inputs / (inputs + ASSUMPTIONS.product_depth)
    low, high = _bounds(share, None if hardware is None else hardware.bf16_flops / 1e12)
    rate = 2 * tokens * outputs * inputs / took / 1e12
    yield within("rates", f"bf16 product, {name} {shape}", rate, low, high, unit="TFLOP/s", means=SLOW)


def _copy(device: torch.device, hardware: Hardware | None) -> Iterator[CheckResult]:
    source = torch.empty(1 << (30 if device.type == "cuda" else 24), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    took = seconds(lambda: target.copy_(source), device, for_seconds=0.3 if device.type == "cuda" else 0.1)
    low, high = _bounds(ASSUMPTIONS.memory, None if hardware is None else hardware.memory_bandwidth / 1e12)
    yield within("rates", "memory, a copy", 2 * source.numel() / took / 1e12, low, high, unit="TB/s", means=SLOW)


def _fp8(recipe: str, kind: str, hardware: Hardware | None) -> Iterator[CheckResult]:
    """fc1 of a 72B layer forward and backward, its quantisation included."""
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes

    tokens, outputs, inputs = PRODUCTS["fc1"]
    layer = te.Linear(inputs, outputs, bias=False, params_dtype=torch.bfloat16)
    states = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(tokens, outputs, device="cuda", dtype=torch.bfloat16)
    first = [True]

    def step() -> None:
        with te.fp8_autocast(enabled=True, fp8_recipe=getattr(recipes, kind)()):
            result = layer(states, is_first_microbatch=first[0])
        first[0] = False
        result.backward(upstream)
        layer.weight.grad = states.grad = None

    took = seconds(step, torch.device("cuda"), for_seconds=1.0)
    peak = None if hardware is None or hardware.fp8_flops is None else hardware.fp8_flops / 1e12
    low, high = _bounds(ASSUMPTIONS.fp8_linear, peak)
    rate = 6 * tokens * outputs * inputs / took / 1e12
    means = SLOW + "; blockwise is slower than the others by design"
    yield within("rates", f"FP8 {recipe}, fc1 forward and backward", rate, low, high, unit="TFLOP/s", means=means)


def _collectives(hardware: Hardware | None) -> Iterator[CheckResult]:
    import torch.multiprocessing as processes

    ranks = torch.cuda.device_count()
    context = processes.get_context("spawn")
    results = context.SimpleQueue()
    processes.spawn(_all_reduce, args=(ranks, results), nprocs=ranks)
    low, high = _bounds(ASSUMPTIONS.collectives, None if hardware is None else hardware.node_bandwidth / 1e9)
    yield within("rates", f"all-reduce over {ranks} GPUs", results.get(), low, high, unit="GB/s", means=WIRES)


def _all_reduce(rank: int, ranks: int, results: Any) -> None:
    """Bytes that a ring would send each way, a second."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29577"))
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=ranks)
    buffer = torch.empty(1 << 28, device="cuda", dtype=torch.bfloat16)
    took = 0.0
    for at in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.distributed.all_reduce(buffer)
        torch.cuda.synchronize()
        took += time.perf_counter() - started if at > 1 else 0.0
    if rank == 0:
        results.put(2 * (ranks - 1) / ranks * buffer.numel() * 2 / (took / 10) / 1e9)
    torch.distributed.destroy_process_group()
