"""A model's starting weights as Megatron reads them: where they lie, which they are, and whether they are whole."""

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch.distributed as dist

from checkpoint_convert.conversion.journal import BusyError
from checkpoint_convert.hf_to_megatron import ITERATION, hf_to_megatron
from checkpoint_convert.locate import checkpoint_kind, iteration_folder
from dpop_base.errors import UserError
from megatron_dpop.checkpoints import checkpoint
from megatron_dpop.checkpoints.digests import digests_by_all_ranks, digests_here, named_digests
from megatron_dpop.checkpoints.intact import content_files, damage, read_checksums, write_checksums
from megatron_dpop.engine.engine import Engine
from megatron_dpop.runtime import processes
from megatron_dpop.training.identity import CONFIG, weights_id

SAID_BYTES = 2e9  # of a model: what is smaller is converted in seconds


class StartingWeights:
    """The weights of a Megatron folder, or of a Hugging Face folder, which is converted once beside the run.

    Every rank calls every method. What a conversion is called by is its source's content: two models of one name do not
    meet, and a model that was merely copied or touched is not converted again.
    """

    def __init__(self, model: Path, digests: dict[str, str], beside: Path, say: Callable[[str], None]) -> None:
        """`digests`: of the model's files by name; `beside`: the folder that takes conversions."""
        self.model = model
        self._digests = digests
        self._say = say
        self._converted: Path | None = None
        if checkpoint_kind(model) == "huggingface":
            self._converted = beside / f"{model.resolve().name}-{weights_id(digests)[:12]}"

    @cached_property
    def folder(self) -> Path:
        """The torch_dist folder."""
        if self._converted is None:
            return iteration_folder(self.model)
        self._convert(again=False)
        return self._converted / ITERATION

    @cached_property
    def id(self) -> str:
        """Identifies the torch_dist folder's bytes: the same for one that was converted beforehand."""
        if self._converted is None:
            return weights_id({name: value for name, value in self._digests.items() if name != CONFIG})
        return weights_id(read_checksums(self.folder) or {})

    def load(self, engine: Engine) -> None:
        """Fills the engine's model. Raises UserError where the weights are damaged and cannot be converted anew."""
        try:
            self._load(engine)
        except UserError as error:
            if self._converted is None:
                raise
            self._say(f"{error}; {self.model} is converted anew")
            self._convert(again=True)
            self._load(engine)

    def _load(self, engine: Engine) -> None:
        if self._converted is None:  # its digests are those of this start, which has read every byte
            reason = damage(self.folder, lambda paths: {path: self._digests[path.name] for path in paths})
        else:
            reason = damage(self.folder, digests_by_all_ranks, tensors=False)
        if reason:
            raise UserError(f"{self.folder}: {reason}; copy or convert the checkpoint again")
        checkpoint.load_weights(engine, self.folder)

    def _convert(self, *, again: bool) -> None:
        assert self._converted is not None
        with processes.first_rank_only() as works:
            if works and (again or not _is_converted(self._converted)):
                if sum(path.stat().st_size for path in self.model.iterdir()) > SAID_BYTES:
                    self._say(f"{self.model}: converting to Megatron's format, once")
                _convert(self.model, self._converted, again=again)
        dist.barrier()


def _is_converted(target: Path) -> bool:
    try:
        return read_checksums(target / ITERATION) is not None
    except ValueError:
        return False


def _convert(model: Path, target: Path, *, again: bool) -> None:
    if again:
        shutil.rmtree(target)
    try:
        hf_to_megatron(model, target, progress=False)
    except UserError as error:
        if not target.exists() or isinstance(error, BusyError):
            raise
        shutil.rmtree(target)  # what an interrupted or damaged conversion has left; a fault of the source shows again
        hf_to_megatron(model, target, progress=False)
    written = target / ITERATION
    write_checksums(written, named_digests(content_files(written), digests_here))
