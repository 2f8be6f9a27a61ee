"""Where reference log-probabilities are kept, and when a kept one may be used."""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from dpop_base.errors import UserError
from dpop_base.files import locked
from megatron_dpop import kernels, logprobs, models, rows
from megatron_dpop.config.schema import PrecisionConfig
from megatron_dpop.engine.batches import RowSource, StepData
from megatron_dpop.runtime.stop import StoppedError
from megatron_dpop.tracking.run_folder import installed_versions
from megatron_dpop.training.kl import MismatchedDataset
from megatron_dpop.training.reference import (
    DamagedReferenceError,
    KeptReference,
    ReferenceKey,
    compute_reference,
    covers,
    read_reference,
    write_reference,
)
from megatron_dpop.training.routes import UNKNOWN, no_routes
from megatron_dpop.training.run import Run
from megatron_dpop.training.validation import validation_steps

# Weights and data decide the values; these only their rounding.
ROUNDING = ("params", "layout", "rows", "code")

# What turns tokens and weights into log-probabilities.
LIBRARIES = ("torch", "megatron-core", "transformer-engine")
SOURCES = (models, logprobs, kernels, rows)


def step_data(run: Run) -> tuple[StepData, StepData | None]:
    """Returns training and validation data with the reference's log-probabilities, from the cache where it holds them.

    Raises StoppedError where a signal asked for a stop; what was computed until then is kept, and gone on from.
    """
    if not run.inputs.loss.needs_reference:
        return StepData(run.train), StepData(run.validation) if run.validation else None
    caches = References(run)

    def referenced(name: str, source: RowSource, steps: int) -> StepData:
        kept = caches.get(name, source, steps)
        data = StepData(source, kept.logps, routes=kept.routes)
        if not run.inputs.loss.needs_kl:
            return data
        other = source.over(MismatchedDataset(source.dataset))
        return replace(data, mismatched=StepData(other, caches.get(f"{name}_mismatched", other, steps).logps))

    train = referenced("train", run.train, run.config.train.steps)
    if run.validation is None:
        return train, None
    return train, referenced("validation", run.validation, validation_steps(run.validation))


class References:
    """Reference log-probabilities by dataset, computed where no fitting cache exists."""

    def __init__(self, run: Run) -> None:
        self.config = run.config
        self.engine = run.engine
        self.folder = run.folder.reference
        self.weights = run.reference_weights
        self.console = run.console
        self.heartbeat = run.heartbeat
        self.stop = run.stop
        self._loaded = False

    def get(self, name: str, source: RowSource, steps: int) -> KeptReference:
        """Returns what `steps` steps need of the reference. Raises StoppedError as `step_data`."""
        path = self.folder / f"{name}.safetensors"
        key = self._key(source)
        kept = self._read(path, key, source, steps)
        if kept is not None and covers(kept.logps, source, steps):
            if kept.routes is None and source.engine.architecture.experts is not None:
                self.console.say(f"{path} holds no routes: moe/route_agreement is not measured; delete it for that")
            return kept
        known = None if kept is None else kept.logps
        routes = no_routes(source)
        if routes is not None and kept is not None and kept.routes is not None:
            routes[...] = kept.routes
        if not self._loaded:
            self.weights.load(self.engine)
            self._loaded = True
        with self.console.progress(f"reference ({name})", steps) as bar:

            def progress(done: int) -> None:
                bar.update(done)
                self.heartbeat.beat("reference", step=done, steps=steps)

            logps = compute_reference(self.engine, source, steps, progress, known=known, routes=routes, stop=self.stop)
        computed = KeptReference(logps, key, routes)
        refused = [self._keep(path, computed) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise UserError(refused[0])
        examples = int((~np.isnan(logps[:, 0])).sum())
        self.heartbeat.beat("reference", saved=f"reference {name} of {examples} examples")
        if self.stop.agreed:
            raise StoppedError(f"in the reference pass ({name}), whose {examples} examples so far are kept")
        return computed

    def _read(self, path: Path, key: ReferenceKey, source: RowSource, steps: int) -> KeptReference | None:
        """What was kept for this very key, be it all that is needed or a part; or all, if only rounding differs."""
        found: list[Any] = [self._read_checked(path) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)  # another run that shares the cache may be replacing it
        if found[0] is None:
            return None
        kept: KeptReference = found[0]
        differing = kept.key.differs(key)
        given = self.config.reference.cache is not None
        wrong = [name for name in differing if name not in ROUNDING]
        if wrong and given:
            raise UserError(_made_from_other(path, wrong))
        if wrong or (differing and not (given and covers(kept.logps, source, steps))):
            self.console.say(f"{path} was computed with other {', '.join(differing)}; it is computed anew")
            return None
        if differing:
            self.console.say(
                f"warning: {path} was computed with other {', '.join(differing)}; policy and reference will "
                "differ by rounding, which a hinge as steep as DPOP's turns into bias (see reference/drift)"
            )
        return kept

    def _keep(self, path: Path, kept: KeptReference) -> str | None:
        """Writes a cache, and in it what another run that shares it has computed meanwhile. Returns why it may not."""
        with locked(_lock_of(path)):
            there = self._read_or_set_aside(path)
            if there is not None:
                differing = there.key.differs(kept.key)
                wrong = [name for name in differing if name not in ROUNDING]
                if wrong and self.config.reference.cache is not None:
                    return _made_from_other(path, wrong)
                if not differing:
                    kept = _both(kept, there)
            write_reference(path, kept)
        return None

    def _read_checked(self, path: Path) -> KeptReference | None:
        """None where nothing is kept, or what is kept is damaged; that is then set aside, be it what it may."""
        if not path.exists():
            return None
        try:
            return read_reference(path)
        except DamagedReferenceError:
            with locked(_lock_of(path)):  # of several runs that find it so, one sets it aside
                return self._read_or_set_aside(path)

    def _read_or_set_aside(self, path: Path) -> KeptReference | None:
        if not path.exists():
            return None
        try:
            return read_reference(path)
        except DamagedReferenceError as damage:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            self.console.say(f"{path} is damaged ({damage}); it is now {aside.name}, and computed anew")
            return None

    def _key(self, source: RowSource) -> ReferenceKey:
        parallel, precision = self.config.parallel, self.config.precision
        layout = (
            f"tensor {parallel.tensor} pipeline {parallel.pipeline} context {parallel.context} "
            f"sequence {parallel.sequence}{' overlapped' if parallel.overlap_tensor else ''}"
        )
        if self.engine.architecture.experts is not None:
            layout += f" expert {parallel.expert} of {parallel.expert_tensor}"
        capacity = f"{source.capacity_tokens}{' always' if self.engine.equal_rows else ''}"
        packing = f"capacity {capacity} shared {source.share_prefix} batch {source.batch}"
        return ReferenceKey(
            weights=self.weights.id,
            data=source.dataset.fingerprint + source.weights.describe(),
            params=f"{named_precision(precision)} {self.engine.device.type}",
            layout=f"{layout} data {self.engine.data_parallel_size} pad_heads {parallel.pad_heads}",
            rows=f"{packing} seed {source.seed if source.shuffle else None}",
            code=code_fingerprint(),
        )


def _both(kept: KeptReference, there: KeptReference) -> KeptReference:
    """What one of two caches of one key has, and what only the other has."""
    logps, routes = np.where(np.isnan(kept.logps), there.logps, kept.logps), kept.routes
    if routes is not None and there.routes is not None:
        routes = np.where(routes == UNKNOWN, there.routes, routes)
    return KeptReference(logps, kept.key, routes)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _made_from_other(path: Path, parts: Sequence[str]) -> str:
    return (
        f"reference.cache: {path} was made from other {' and '.join(parts)}; "
        "give another folder, or delete it to compute it anew"
    )


def named_precision(precision: PrecisionConfig) -> str:
    """All that decides how weights and activations are rounded."""
    if precision.fp8 is None:
        return precision.params
    weights = " weights" if precision.fp8_params else ""
    return f"{precision.params} fp8 {precision.fp8}{weights} but {precision.bf16_end_layers} end layers"


@cache
def code_fingerprint() -> str:
    """Returns the libraries' versions, and one digest of the code that computes log-probabilities."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(meaning(path.read_text(encoding="utf-8")).encode())
    versions = installed_versions(LIBRARIES)
    return " ".join([*(f"{name} {version}" for name, version in versions.items()), digest.hexdigest()])


def meaning(source: str) -> str:
    """Returns what Python does with a file, in words: comments, docstrings and layout leave it as it is."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
