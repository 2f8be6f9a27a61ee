"""Time, peak memory and error of the output layer's log-probabilities, against ways that keep all logits."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Report
from benchmarks.subcommand import subcommand
from megatron_dpop.logprobs.chunking import Chunking, default_chunking
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measurement:
    """One way of computing, forward and backward together where not said otherwise."""

    name: str
    forward_seconds: float
    seconds: float
    processor_seconds: float
    """Of all of this process's threads, which other work on the machine changes less."""
    peak_bytes: int
    """Above the inputs, the gradients included."""
    extra_bytes: int
    """Above the inputs, not counting the gradients that are handed back."""
    mean_error_nats: float
    """Mean absolute difference of a log-probability to float64, over the first scores."""


@dataclass(frozen=True)
class Problem:
    """Shapes and device of the benchmark."""

    scores: int
    hidden: int
    vocab: int
    device: str
    dtype: torch.dtype = torch.bfloat16

    def tensors(self, *, main_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [scores, hidden], weight [vocab, hidden], targets [scores]; logits of about +-12."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(self.scores, self.hidden, generator=generator).to(self.device, self.dtype)
        weight = torch.empty(self.vocab, self.hidden, dtype=self.dtype)
        for block in weight.split(8192):  # a whole fp32 weight of a 72B model would not fit everywhere
            block.copy_(torch.randn(block.shape, generator=generator) * (3.0 / self.hidden**0.5))
        parameter = torch.nn.Parameter(weight.to(self.device))
        if main_grad:
            parameter.main_grad = torch.zeros(parameter.shape, device=self.device)  # type: ignore[attr-defined]
        targets = torch.randint(0, self.vocab, (self.scores,), generator=generator).to(self.device)
        return hidden.requires_grad_(), parameter, targets


def chunked(chunking: Chunking | None) -> LogProbs:
    """The project's own function."""

    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return vocab_parallel_linear_logprobs(
            hidden, weight, targets, vocab_size=len(weight), tp_group=None, chunking=chunking
        )

    return logprobs


def materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits in bf16, their log-softmax in fp32: what most trainers do."""
    logits = (hidden @ weight.t()).float()
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def materialised_fp32(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits in fp32, never rounded: the accuracy that chunking also has."""
    logits = hidden.float() @ weight.float().t()
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def megatron(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Megatron-Core's vocab-parallel cross entropy on bf16 logits, in a group of one rank."""
    # Nothing of Megatron-Core may be imported before a trainer has chosen its device.
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    logits = hidden @ weight.t()
    return -vocab_parallel_cross_entropy(logits, targets, tp_group=dist.group.WORLD)


OURS = "chunked (ours)"
WAYS: dict[str, LogProbs | None] = {
    OURS: None,  # made for the chunking that is asked for
    "materialised, bf16 logits": materialised,
    "materialised, fp32 logits": materialised_fp32,
    "Megatron cross entropy": megatron,
}


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Highest number of bytes allocated at once while `function` runs, above those before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    total = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda e: e["ts"]):
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak


def measure(name: str, logprobs: LogProbs, problem: Problem, *, main_grad: bool, repeats: int) -> Measurement:
    """Runs one way: once to warm up and count memory, then `repeats` times for the best time."""
    hidden, weight, targets = problem.tensors(main_grad=main_grad)

    def synchronise() -> float:
        if problem.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step() -> tuple[float, float, float]:
        hidden.grad = weight.grad = None
        busy = time.process_time()
        start = synchronise()
        values = logprobs(hidden, weight, targets)
        middle = synchronise()
        values.sum().backward()
        return middle - start, synchronise() - start, time.process_time() - busy

    def forward() -> Tensor:
        return logprobs(hidden, weight, targets)

    step()
    hidden.grad = weight.grad = None
    forward_peak = peak_bytes(forward, problem.device)
    peak = peak_bytes(step, problem.device)
    gradient_bytes = sum(t.grad.numel() * t.grad.element_size() for t in (hidden, weight) if t.grad is not None)
    times = [step() for _ in range(repeats)]
    return Measurement(
        name=name,
        forward_seconds=min(forward for forward, _, _ in times),
        seconds=min(total for _, total, _ in times),
        processor_seconds=min(busy for _, _, busy in times),
        peak_bytes=peak,
        # The peak may lie in the forward pass, before there are gradients.
        extra_bytes=max(forward_peak, peak - gradient_bytes),
        mean_error_nats=mean_error(logprobs, hidden, weight, targets),
    )


def mean_error(logprobs: LogProbs, hidden: Tensor, weight: Tensor, targets: Tensor, count: int = 16) -> float:
    """Mean absolute error of the first `count` log-probabilities, in nats."""
    with torch.no_grad():
        actual = logprobs(hidden[:count], weight, targets[:count])
        logits = torch.cat([hidden[:count].double() @ block.double().t() for block in weight.split(8192)], 1)
        expected = logits.log_softmax(-1).gather(1, targets[:count, None]).squeeze(1)
    return float((actual.double() - expected).abs().mean())


def measure_all(
    problem: Problem, *, repeats: int, chunking: Chunking | None = None, ways: Sequence[str] = tuple(WAYS)
) -> list[Measurement]:
    """The ways named, on one problem. Needs no process group; makes one of one rank if absent."""
    own_group = not dist.is_initialized()
    if own_group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return [
            measure(name, WAYS[name] or chunked(chunking), problem, main_grad=WAYS[name] is None, repeats=repeats)
            for name in ways
        ]
    finally:
        if own_group:
            dist.destroy_process_group()


def table(problem: Problem, measurements: Sequence[Measurement]) -> str:
    """Markdown; memory also as a share of fp32 logits."""
    logits_bytes = problem.scores * problem.vocab * 4
    lines = [
        f"{problem.scores} scores, hidden {problem.hidden}, vocabulary {problem.vocab}, "
        f"{str(problem.dtype).removeprefix('torch.')}, {problem.device}; "
        f"fp32 logits are {logits_bytes / 2**20:.0f} MiB",
        "",
        "| | forward, s | forward + backward, s | processor, s | beyond inputs and gradients | of fp32 logits "
        "| error, nats |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.name} | {row.forward_seconds:.3f} | {row.seconds:.3f} | {row.processor_seconds:.3f} "
        f"| {row.extra_bytes / 2**20:.0f} MiB | {row.extra_bytes / logits_bytes:.3f} | {row.mean_error_nats:.1e} |"
        for row in measurements
    ]
    return "\n".join(lines)


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py logprob --scores 256 --hidden 896   (what a laptop's CPU manages)"
    parser = subcommand(
        subparsers, __name__, "the output layer's log-probabilities against materialised logits", example=example
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scores", type=int, default=4096, help="scored tokens")
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=152064)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--chunk-tokens", type=int, help="default: by device")
    parser.add_argument("--chunk-vocab", type=int, help="default: by device")


def run(arguments: argparse.Namespace) -> Report:
    default = default_chunking(torch.device(arguments.device))
    tokens = arguments.chunk_tokens or default.tokens
    chunking = Chunking(tokens, arguments.chunk_vocab or default.vocab, min(default.row_tile, tokens))
    problem = Problem(arguments.scores, arguments.hidden, arguments.vocab, arguments.device)
    found = measure_all(problem, repeats=arguments.repeats, chunking=chunking, ways=arguments.ways)
    return Report(table(problem, found), [asdict(row) for row in found])
