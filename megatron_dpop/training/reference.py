"""Reference log-probabilities: computed once by the policy's own code, in the policy's own rows, and cached.

DPOP's hinge turns any disagreement between policy and reference into a bias, so the reference is computed under the
packing, layout and precision that training will use: at step 0 the two agree to the last bit where the machine is
deterministic.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import torch
import torch.distributed as dist
from safetensors.numpy import save

from dpop_base.checksums import digest
from dpop_base.errors import first_line
from dpop_base.files import write_bytes
from megatron_dpop.engine.batches import ReferenceLogps, ReferenceRoutes, RowSource
from megatron_dpop.engine.delayed_scales import move_scales, warm_scales
from megatron_dpop.engine.engine import Engine
from megatron_dpop.engine.forward import logps_only, run_rows
from megatron_dpop.engine.non_finite import NonFiniteError, named
from megatron_dpop.models.lora import adapters_off
from megatron_dpop.rows.row import Row
from megatron_dpop.runtime.stop import StopRequest
from megatron_dpop.training.routes import enter_routes, share_routes


@dataclass(frozen=True)
class ReferenceKey:
    """What reference log-probabilities depend on: the first two wholly, the rest in their rounding."""

    weights: str
    data: str
    params: str
    layout: str
    rows: str
    code: str = "unknown"  # so in caches of before it was written

    def differs(self, other: "ReferenceKey") -> list[str]:
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]


def compute_reference(
    engine: Engine,
    source: RowSource,
    steps: int,
    progress: Callable[[int], None],
    *,
    known: ReferenceLogps | None = None,
    routes: ReferenceRoutes | None = None,
    stop: StopRequest | None = None,
) -> ReferenceLogps:
    """Log-probabilities of every example that the steps use, fp32 [examples, completions]; others are NaN.

    Goes through the very rows of training, so an example of a later epoch has the value of its first use. Adapters,
    where there are any, are off: the reference is the frozen base. Goes on from what is `known`, and ends early once
    all ranks have agreed to `stop`. Fills in `routes` of the same examples, where a table is given. Raises
    NonFiniteError on all ranks where a value is not finite.
    """
    completions = source.dataset.lengths().completion_tokens.shape[1]
    table = torch.zeros(len(source), completions + 1, dtype=torch.float32)  # the last column is 1 where entered
    before = np.zeros(len(source), dtype=np.bool_) if known is None else ~np.isnan(known[:, 0])
    covered = before.copy()
    present = source.dataset.lengths().completion_tokens > 0
    for step in range(steps):
        examples = source.examples_of_step(step)
        if not covered[examples].all():
            with adapters_off(engine.adapters):
                if (covered == before).all():
                    warm_scales(engine, source, step)
                rows = source.rows(step, None)
                results = run_rows(engine, rows, logps_only, forward_only=True)
            move_scales(engine)
            if routes is not None:
                enter_routes(routes, rows, covered, source)
            for result in results:
                if engine.is_metrics_rank:
                    _enter(table, result.row, result.logps.float().cpu(), covered)
            covered[examples] = True
            if stop is not None and _agreed(stop, engine):
                break
        progress(step + 1)
        if covered.all():
            break
    if routes is not None:
        share_routes(routes, engine)
    on_device = table.to(engine.device)
    dist.all_reduce(on_device)
    # Sums of one value and zeros, hence exact; but an example that a step uses twice may be entered by two ranks.
    logps = (on_device[:, :-1] / on_device[:, -1:].clamp(min=1)).cpu().numpy()
    used = (covered & ~before)[:, None] & present
    bad = np.flatnonzero((used & ~np.isfinite(logps)).any(axis=1)).tolist()
    if bad:
        raise NonFiniteError(
            f"reference: the log-probability of {named(source.dataset, bad)} is not a finite number; "
            "look at the reference model's weights, or at these examples"
        )
    logps[~used] = np.nan
    if known is not None:
        logps[before] = known[before]
    return np.asarray(logps)


def _agreed(stop: StopRequest, engine: Engine) -> bool:
    """Nothing else of a reference step goes over all ranks; its forward passes take far longer than this sum."""
    votes = torch.tensor(stop.votes(), device=engine.device)
    dist.all_reduce(votes)
    stop.count(votes.tolist())
    return stop.agreed


def _enter(table: torch.Tensor, row: Row, logps: torch.Tensor, covered: np.ndarray) -> None:
    at = 0
    for example, sequences in zip(row.example_ids, np.bincount(row.sequence_example), strict=True):
        if not covered[example]:
            table[example, :sequences] = logps[at : at + int(sequences)]
            table[example, -1] = 1
        at += int(sequences)


class DamagedReferenceError(Exception):
    """A cache that does not hold what was written, or none of ours."""


class KeptReference(NamedTuple):
    """What a cache holds."""

    logps: ReferenceLogps
    key: ReferenceKey
    routes: ReferenceRoutes | None = None  # of models with experts


def write_reference(path: Path, kept: KeptReference) -> None:
    text = json.dumps(asdict(kept.key))
    tensors = {"logps": kept.logps} if kept.routes is None else {"logps": kept.logps, "routes": kept.routes}
    write_bytes(path, save(tensors, metadata={"key": text, "checksum": _checksum(tensors, text)}))


def read_reference(path: Path) -> KeptReference:
    """Raises DamagedReferenceError where the file is not what was written, or is no cache of ours."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if metadata["checksum"] != _checksum(tensors, metadata["key"]):
            raise DamagedReferenceError("its content does not fit its checksum")
        return KeptReference(tensors["logps"], ReferenceKey(**json.loads(metadata["key"])), tensors.get("routes"))
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise DamagedReferenceError(first_line(error)) from None


def _checksum(tensors: dict[str, np.ndarray], key: str) -> str:
    """`tensors` by name, in the names' order."""
    content = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    shapes = "".join(f"{tensor.dtype} {tensor.shape} " for tensor in tensors.values())
    return digest(content + (shapes + key).encode())


def covers(logps: ReferenceLogps, source: RowSource, steps: int) -> bool:
    """True where the cache has every example that the steps use."""
    return all(not np.isnan(logps[source.examples_of_step(step), 0]).any() for step in range(steps))
