"""Steps of a few layers of a large model, its weights drawn on the device: MFU, memory, and kernels by kind."""

import gc
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.made_up_pairs import KINDS, MadeUpPairs

from dpop_base.architectures import read_architecture
from gpu_checks.finding import CheckResult, within
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.plan.flops import training_flops
from megatron_dpop.plan.hardware import known_device

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "72b": {"hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64, "num_key_value_heads": 8},
}
# Least MFU of a step: three quarters of what an H100 reached (docs/gpu_results.md).
LEAST_MFU = {
    ("72b", None): 0.44,
    ("7b", None): 0.38,
    ("72b", "tensorwise"): 0.64,
    ("72b", "blockwise"): 0.57,
    ("7b", "tensorwise"): 0.50,
}
MEANS = "look at the kernels below: many element-wise ones mean that kernels.fused is off, idle time a slow host"
KINDS_OF_KERNELS = {
    "attention": ("flash", "fmha", "cudnn", "attention"),
    "products": ("gemm", "cutlass", "nvjet", "xmma"),
    "ours": ("_forward", "_backward", "_take_in", "_gradient"),
    "norm": ("norm",),
    "optimizer": ("adam", "multi_tensor"),
    "FP8 casts": ("cast", "quantize", "amax"),
    "copies": ("memcpy", "memset", "fill"),
}


def check(
    device: torch.device, name: str, *, layers: int, vocabulary: int, fp8: str | None, row_tokens: int, rows: int
) -> Iterator[CheckResult]:
    from megatron_dpop.training.metrics import StepMetrics
    from megatron_dpop.training.reruns import Reruns
    from megatron_dpop.training.step import train_step

    engine, data, loss = _training(device, name, layers, vocabulary, fp8, row_tokens, rows)
    metrics = StepMetrics(engine, loss, data.source.dataset)
    gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if gpu else lambda: None
    times = []
    for step in range(4 if gpu else 2):
        wait()
        started = time.perf_counter()
        found = train_step(engine, data, metrics, Reruns(), step)
        wait()
        times.append(time.perf_counter() - started)
    took = min(times[1:])
    flops = _flops(engine.architecture, data, len(times) - 1)
    what = f"{name}, {layers} layers, {fp8 or 'bf16'}"
    yield CheckResult(
        "step", f"{what}: loss", f"{found['loss']:.4g}", "finite", "ok" if np.isfinite(found["loss"]) else "MISS"
    )
    peak = known_device(torch.cuda.get_device_name(device)) if gpu else None
    low = LEAST_MFU.get((name, fp8)) if peak is not None else None
    share = flops / took / (peak.bf16_flops if peak is not None else 1e12)
    unit = "of the bf16 peak (MFU)" if peak is not None else "TFLOP/s"
    yield within("step", what, share, low, None, unit=unit, means=MEANS)
    if gpu:
        memory = torch.cuda.max_memory_allocated() / 2**30
        yield CheckResult("step", f"{what}: peak memory", f"{memory:.1f} GiB", "", "-")
        yield from _kernels(lambda: train_step(engine, data, metrics, Reruns(), len(times)), what)


def _training(
    device: torch.device, name: str, layers: int, vocabulary: int, fp8: str | None, row_tokens: int, rows: int
) -> tuple[Any, Any, Any]:
    from megatron_dpop.engine.batches import RowSource, StepData
    from megatron_dpop.engine.engine import build_engine
    from megatron_dpop.losses.registry import make_loss

    # The model before this one is held by cycles, and two do not fit.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        config, architecture = _described(Path(folder), name, layers, vocabulary, fp8, row_tokens)
    engine = build_engine(config, architecture, device)
    with torch.no_grad():
        for module in engine.modules:
            for title, parameter in module.named_parameters():
                if "norm" in title and parameter.dim() == 1:
                    parameter.fill_(1)
                else:
                    parameter.normal_(0, 0.02)
    engine.optimizer.reload_model_params()
    pairs = MadeUpPairs(KINDS["metamath-like"], 5000, vocab_size=vocabulary)
    source = RowSource(config, pairs, engine, shuffle=True)
    source.batch = max(1, int(rows * row_tokens * 0.98 / float(source.shapes.row_tokens.mean())))
    reference = np.full((len(pairs), 2), -100.0, dtype=np.float32)
    return engine, StepData(source, reference), make_loss({"name": "dpop"})


def _described(
    folder: Path, name: str, layers: int, vocabulary: int, fp8: str | None, row_tokens: int
) -> tuple[Any, Any]:
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        **SHAPES[name],
    }
    (folder / "config.json").write_text(json.dumps(shape))
    tree: dict[str, Any] = {
        "model": {"path": str(folder)},
        "data": {"train": "made up", "row_tokens": row_tokens},
        "precision": {"params": "bf16", **({"fp8": fp8} if fp8 else {})},
        "optimizer": {"warmup_steps": 0},
        "run": {"dir": str(folder / "run")},
    }
    return config_from_dict(tree, origin="gpu_check"), read_architecture(folder)


def _flops(architecture: Any, data: Any, step: int) -> float:
    shapes, chosen = data.source.shapes, data.source.examples_of_step(step)
    return training_flops(
        architecture,
        None,
        tokens=float(shapes.row_tokens[chosen].sum()),
        scores=float(shapes.scores[chosen].sum()),
        attended=float(shapes.attended[chosen].sum()),
    )


def _kernels(take_step: Any, what: str) -> Iterator[CheckResult]:
    """Time on the device by kind, of a step that the profiler makes a little slower."""
    from torch.profiler import ProfilerActivity, profile

    take_step()  # Transformer Engine compiles its FP8 casts when it first meets a row's length
    torch.cuda.synchronize()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        take_step()
        torch.cuda.synchronize()
    took = time.perf_counter() - started
    spent: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profiler.events() or ():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        title = event.name.lower()
        words = ((kind, any(word in title for word in known)) for kind, known in KINDS_OF_KERNELS.items())
        kind = next((kind for kind, matches in words if matches), "element-wise")
        spent[kind] += event.time_range.elapsed_us() / 1e6
        launches[kind] += 1
    idle = max(0.0, 1 - sum(spent.values()) / took)
    yield within("step", f"{what}: device idle", idle, None, 0.15, unit="of the profiled step", means=MEANS)
    for kind, seconds in spent.most_common():
        yield CheckResult("step", f"{what}: {kind}", f"{seconds / took:.1%} in {launches[kind]} launches", "", "-")
