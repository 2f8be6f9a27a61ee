"""How far log-probabilities of the same pairs differ when only packing, layout or tiling differs:

    python tools/noise.py MODEL PAIRS --pairs 16
    python tools/noise.py MODEL PAIRS --pairs 16 --fp8     # FP8 products, emulated (tools/fp8_emulation.py)

MODEL is a Hugging Face or Megatron checkpoint folder. Every setting scores the same pairs with the same weights; each
is compared with another as a policy with its reference, and DPOP's hinge shows what it makes of the difference.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logps = NDArray[np.float32]  # [pairs, 2]: chosen, rejected
ROW_TOKENS = 2048


@dataclass(frozen=True)
class Case:
    name: str
    ranks: int = 1
    parallel: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    tile: tuple[int, int, int] | None = None  # scored tokens, vocabulary entries, rows' multiple
    fp8: str | None = None  # recipe
    passes: int = 1  # over the pairs; the last one's numbers are taken
    reference: str = "one rank"  # the setting that it is compared with


BASE = Case("one rank")
SETTINGS = (
    BASE,
    Case("the same again"),
    Case(f"rows of {2 * ROW_TOKENS} tokens", data={"row_tokens": 2 * ROW_TOKENS}),
    Case("prefixes not shared", data={"share_prefix": False}),
    Case("tiles of 64 scored tokens", tile=(64, 512, 64)),
    Case("tiles of 2048 vocabulary entries", tile=(512, 2048, 64)),
    Case("pipeline 2", 2, {"pipeline": 2}),
    Case("tensor 2", 2, {"tensor": 2, "sequence": False, "pad_heads": True}),
    Case("tensor 2, sequence parallel", 2, {"tensor": 2, "sequence": True, "pad_heads": True}),
)

OTHER_ROWS = {"row_tokens": ROW_TOKENS // 2}
FP8_SETTINGS = (
    BASE,
    *(Case(f"FP8 {recipe}, reference in bf16", fp8=recipe) for recipe in ("tensorwise", "blockwise", "delayed")),
    *(
        Case(f"FP8 {recipe}, other rows", data=OTHER_ROWS, fp8=recipe, reference=f"FP8 {recipe}, reference in bf16")
        for recipe in ("tensorwise", "blockwise")
    ),
    Case("FP8 delayed, a pass later", fp8="delayed", passes=2, reference="FP8 delayed, reference in bf16"),
)


@dataclass(frozen=True)
class Noise:
    """One setting as the policy against another as its reference. Nats, summed over a completion's tokens."""

    precision: str
    setting: str
    largest: float  # of |policy - reference| over completions
    typical: float  # its root mean square
    active_fraction: float  # pairs whose chosen completion seems to have lost probability
    penalty: float  # mean of max(0, reference - policy) over chosen completions
    loss_shift: float  # mean DPOP loss minus ln 2, what it is where the two agree


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("pairs_file", type=Path, metavar="PAIRS")
    parser.add_argument("--pairs", type=int, default=16, help="how many pairs are scored")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--fp8", action="store_true", help="FP8 recipes in place of layouts and tiles, in bf16")
    parser.add_argument("--lambda", dest="steepness", type=float, default=50.0)
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(noise) for noise in found], indent=2) + "\n")
    return 0


def measure(options: argparse.Namespace, scratch: Path) -> list[Noise]:
    model = _as_megatron(options.model, scratch)
    precisions = ["bf16"] if options.fp8 else options.precision
    settings = FP8_SETTINGS if options.fp8 else SETTINGS
    jobs = [(precision, setting) for precision in precisions for setting in settings]
    logps: dict[tuple[str, str], Logps] = {}
    for ranks in sorted({setting.ranks for _, setting in jobs}):
        batch = [job for job in jobs if job[1].ranks == ranks]
        trees = [_tree(options, model, scratch, *job) for job in batch]
        tables = _on_ranks(ranks, trees, [setting for _, setting in batch], scratch / f"ranks_{ranks}.npz")
        logps |= {(precision, setting.name): table for (precision, setting), table in zip(batch, tables, strict=True)}
    found = [
        compare(precision, setting.name, logps[precision, setting.name], logps[precision, setting.reference], options)
        for precision, setting in jobs
        if setting is not BASE
    ]
    if {"bf16", "fp32"} <= set(precisions):
        found.append(compare("bf16", "reference in fp32", logps["bf16", BASE.name], logps["fp32", BASE.name], options))
    return found


def compare(precision: str, name: str, policy: Logps, reference: Logps, options: argparse.Namespace) -> Noise:
    import torch

    from megatron_dpop.losses.contract import CompletionBatch
    from megatron_dpop.losses.registry import make_loss

    pairs = len(policy)
    loss = make_loss({"name": "dpop", "beta": options.beta, "lambda": options.steepness})
    output = loss(
        CompletionBatch(
            logps=torch.from_numpy(policy).flatten(),
            reference_logps=torch.from_numpy(reference).flatten(),
            lengths=torch.ones(2 * pairs, dtype=torch.int64),
            example=torch.arange(pairs).repeat_interleave(2),
            preferred=torch.tensor([True, False]).repeat(pairs),
            num_examples=pairs,
        )
    )
    difference = policy.astype(np.float64) - reference
    return Noise(
        precision=precision,
        setting=name,
        largest=float(np.abs(difference).max()),
        typical=float(np.sqrt((difference**2).mean())),
        active_fraction=output.metrics["dpop/active_fraction"].mean().item(),
        penalty=output.metrics["dpop/penalty"].mean().item(),
        loss_shift=output.losses.double().mean().item() - math.log(2),
    )


def table(found: Sequence[Noise]) -> str:
    lines = [
        "| precision | what differs | largest, nats | rms, nats | penalty active | mean penalty, nats | loss - ln 2 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for noise in found:
        numbers = f"{noise.largest:.2g} | {noise.typical:.2g} | {noise.active_fraction:.0%} | {noise.penalty:.2g}"
        shift = 0.0 if abs(noise.loss_shift) < 1e-7 else noise.loss_shift
        lines.append(f"| {noise.precision} | {noise.setting} | {numbers} | {shift:.2g} |")
    return "\n".join(lines)


def _as_megatron(model: Path, scratch: Path) -> Path:
    from checkpoint_convert.hf_to_megatron import hf_to_megatron
    from checkpoint_convert.locate import checkpoint_kind

    if checkpoint_kind(model) == "megatron":
        return model
    hf_to_megatron(model, scratch / "model", progress=False)
    return scratch / "model"


def _tree(options: argparse.Namespace, model: Path, scratch: Path, precision: str, setting: Case) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "precision": {"params": precision},
        "parallel": setting.parallel,
        "data": {"train": str(options.pairs_file), "row_tokens": ROW_TOKENS, **setting.data},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 1, "global_batch_pairs": options.pairs},
        "run": {"dir": str(scratch / "run")},
    }


def _on_ranks(ranks: int, trees: list[dict[str, Any]], settings: list[Case], result: Path) -> list[Logps]:
    """Scores under each config in processes of their own; one table a config."""
    spawn_ranks(ranks, _rank, (trees, settings, result))
    with np.load(result) as tables:
        return [tables[str(at)] for at in range(len(trees))]


def spawn_ranks(ranks: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Calls `function(rank, *arguments)` in a process of its own for each rank. Exits where one fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_start, args=(function, rank, ranks, port, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("noise: a rank failed; its error is above")


def _start(function: Callable[..., None], rank: int, ranks: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    function(rank, *arguments)


def _rank(rank: int, trees: list[Any], settings: list[Case], result: Path) -> None:
    tables = {str(at): _score(*job) for at, job in enumerate(zip(trees, settings, strict=True))}
    if rank == 0:
        np.savez(result, **tables)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options


def _score(tree: dict[str, Any], setting: Case) -> Logps:
    """Log-probabilities of the first step's pairs, by the trainer's own reference pass."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="noise")
    device = processes.initialize(config.parallel, seed=0)
    from fp8_emulation import emulate_fp8
    from megatron.core import parallel_state

    from megatron_dpop.engine.batches import ReferenceLogps, RowBatch, RowSource
    from megatron_dpop.logprobs.chunking import Chunking
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.reference import compute_reference
    from megatron_dpop.training.resuming import load_policy
    from megatron_dpop.training.run import build_run

    class TiledSource(RowSource):
        def rows(self, step: int, reference: ReferenceLogps | None) -> list[RowBatch]:
            chunking = Chunking(*setting.tile) if setting.tile else None
            rows = super().rows(step, reference)
            return [replace(row, scores=replace(row.scores, chunking=chunking)) for row in rows]

    run = build_run(config, read_inputs(config, progress=False), device)
    load_policy(run)
    if setting.fp8:
        emulate_fp8(run.engine.modules, setting.fp8)
    source = TiledSource(config, run.train.dataset, run.engine, shuffle=True)
    for _ in range(setting.passes):
        logps = compute_reference(run.engine, source, 1, lambda _: None)
    parallel_state.destroy_model_parallel()
    return logps[source.examples_of_step(0)]


if __name__ == "__main__":
    raise SystemExit(main())
