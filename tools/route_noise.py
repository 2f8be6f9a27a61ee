"""How far log-probabilities of a mixture move when packing, layout or precision moves tokens to other experts:

    python tools/route_noise.py MODEL PAIRS --pairs 16
    python tools/route_noise.py DENSE PAIRS --pairs 16 --cut    # of a Llama that is cut into experts first

Every setting scores the same pairs with the same weights: as its own routers send the tokens, and in bf16 also with the
routes of one rank replayed. The difference of the two is what routes contribute to the noise that DPOP's hinge sees
(tools/noise.py measures dense models).
"""

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from noise import BASE, ROW_TOKENS, Case, Logps, Noise, _as_megatron, _tree, compare, spawn_ranks
from numpy.typing import NDArray

Routes = dict[str, NDArray[np.int16]]  # "EXAMPLE/COMPLETION": [positions, layers, experts a token], -1 without experts
SETTINGS = (
    Case(f"rows of {2 * ROW_TOKENS} tokens", data={"row_tokens": 2 * ROW_TOKENS}),
    Case("prefixes not shared", data={"share_prefix": False}),
    Case("expert 2", 2, {"expert": 2}),
    Case("tensor 2", 2, {"tensor": 2, "pad_heads": True}),
)


class Found(NamedTuple):
    logps: Logps
    moved: float  # share of (token, layer) with other experts than the base's
    nats: float  # of a chosen answer's token, in the mean


@dataclass(frozen=True)
class Job:
    precision: str
    setting: Case
    replayed: bool = False
    reference: str = ""  # precision of the one rank that it is compared with, and whose routes it replays

    @property
    def key(self) -> tuple[str, ...]:
        return self.precision, self.setting.name, str(self.replayed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("pairs_file", type=Path, metavar="PAIRS")
    parser.add_argument("--pairs", type=int, default=16, help="how many pairs are scored")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--cut", action="store_true", help="cuts a dense Llama into experts first")
    parser.add_argument("--lambda", dest="steepness", type=float, default=50.0)
    parser.add_argument("--beta", type=float, default=0.3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        print(measure(options, Path(scratch)))
    return 0


def measure(options: argparse.Namespace, scratch: Path) -> str:
    source = options.model
    if options.cut:
        from cut_experts import cut_into_experts

        source = cut_into_experts(options.model, scratch / "cut")
    model = _as_megatron(source, scratch)
    bases = [Job(precision, BASE, reference=precision) for precision in options.precision]
    jobs = [
        Job(precision, setting, replayed, precision)
        for precision in options.precision
        for setting in SETTINGS
        for replayed in ((False, True) if precision == "bf16" else (False,))
    ]
    if {"bf16", "fp32"} <= set(options.precision):
        jobs += [Job("bf16", Case("reference in fp32"), replayed, "fp32") for replayed in (False, True)]
    found: dict[tuple[str, ...], Found] = {}
    for ranks, batch in [
        (1, bases),
        *((ranks, [job for job in jobs if job.setting.ranks == ranks]) for ranks in (1, 2)),
    ]:
        trees = [_tree(options, model, scratch, job.precision, job.setting) for job in batch]
        result = scratch / f"found_{len(found)}.npz"
        spawn_ranks(ranks, _rank, (trees, batch, scratch, result))
        with np.load(result) as tables:
            found |= {
                job.key: Found(tables[f"logps{at}"], float(tables[f"moved{at}"]), float(tables[f"nats{at}"]))
                for at, job in enumerate(batch)
            }
    of_base = {job.precision: found[job.key] for job in bases}

    def noise(job: Job) -> Noise:
        return compare(job.precision, job.setting.name, found[job.key].logps, of_base[job.reference].logps, options)

    first = f"chosen answers: {of_base[options.precision[0]].nats:.2f} nats a token\n\n"
    return first + table([(job, noise(job), found[job.key].moved) for job in jobs])


def table(found: Sequence[tuple[Job, Noise, float]]) -> str:
    lines = [
        "| precision | what differs | routes | other experts | largest, nats | rms, nats | active | loss - ln 2 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job, noise, moved in found:
        shift = 0.0 if abs(noise.loss_shift) < 1e-7 else noise.loss_shift
        routes = f"{'replayed' if job.replayed else 'own'} | {moved:.2%}"
        numbers = f"{noise.largest:.2g} | {noise.typical:.2g} | {noise.active_fraction:.0%} | {shift:.2g}"
        lines.append(f"| {noise.precision} | {noise.setting} | {routes} | {numbers} |")
    return "\n".join(lines)


def _rank(rank: int, trees: list[Any], jobs: list[Job], scratch: Path, result: Path) -> None:
    tables: dict[str, Any] = {}
    for at, (tree, job) in enumerate(zip(trees, jobs, strict=True)):
        found = _score(tree, job, scratch)
        tables |= {f"{name}{at}": value for name, value in found._asdict().items()}
        gc.collect()  # of a run that refers to itself, before the next is built
    if rank == 0:
        np.savez(result, **tables)


def _score(tree: dict[str, Any], job: Job, scratch: Path) -> Found:
    """Scores the first step's pairs. The base leaves its routes in `scratch`."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="route_noise")
    device = processes.initialize(config.parallel, seed=0)
    from megatron.core import parallel_state
    from route_replay import Followed, following

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.reference import compute_reference
    from megatron_dpop.training.resuming import load_policy
    from megatron_dpop.training.run import build_run

    path = scratch / f"routes_{job.reference}.npz"
    routes: Routes = {}
    if job.setting != BASE:
        with np.load(path) as kept:
            routes = dict(kept)
    run = build_run(config, read_inputs(config, progress=False), device)
    load_policy(run)
    followed = Followed(run.train, routes, replays=job.replayed)
    with following(followed):
        logps = compute_reference(run.engine, followed, 1, lambda _: None)
    moved = 0.0
    if job.setting == BASE:
        np.savez(path, **followed.routes_of_examples())  # type: ignore[arg-type]
    else:
        moved = followed.moved_share()
    parallel_state.destroy_model_parallel()
    examples = run.train.examples_of_step(0)
    chosen, tokens = logps[examples, 0], run.train.dataset.lengths().completion_tokens[examples, 0]
    return Found(logps[examples], moved, -float(chosen.sum() / tokens.sum()))


if __name__ == "__main__":
    raise SystemExit(main())
