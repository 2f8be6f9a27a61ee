"""Which weights a run begins or goes on with: its newest checkpoint that is whole, or those that it starts from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from checkpoint_convert.errors import UserError
from megatron_dpop.training import checkpoint
from megatron_dpop.training.complete import complete_iterations, iteration_name
from megatron_dpop.training.digests import SharedDigests
from megatron_dpop.training.engine import Engine
from megatron_dpop.training.intact import content_files, damage
from megatron_dpop.training.weights import StartingWeights


def load_policy(engine: Engine, checkpoints: Path, weights: StartingWeights, say: Callable[[str], None]) -> int:
    """Fills the engine; returns the steps already taken. Every rank calls it. Raises UserError.

    A checkpoint is compared with its checksums while it is loaded, by other threads. Where it is damaged, the one
    before takes the place of all that was loaded. The only one is compared first: nothing would undo what it left.
    """
    if engine.adapters:
        weights.load(engine)
    candidates = _of_first_rank(complete_iterations(checkpoints, say))
    is_half_loaded = False
    following = next(candidates)
    while following is not None:
        iteration, following = following, next(candidates)
        folder = checkpoints / iteration_name(iteration)
        digests = SharedDigests(content_files(folder).values())
        reason = None if following is not None else _damage(folder, digests)
        if reason is None:
            is_half_loaded = True
            try:
                checkpoint.resume(engine, checkpoints, iteration)
            except UserError as error:
                reason = str(error)
            if following is not None:
                reason = _damage(folder, digests) or reason
        if reason is None:
            say(f"resuming after step {iteration} from {checkpoints}")
            return iteration
        say(f"passing over {folder}: {reason}")
    if is_half_loaded:
        raise UserError(f"{checkpoints}: no checkpoint can be loaded; restore one, or remove them to begin anew")
    if not engine.adapters:
        weights.load(engine)
    return 0


def _damage(folder: Path, digests: SharedDigests) -> str | None:
    found = digests.result()
    return damage(folder, lambda paths: {path: found[path] for path in paths})


def _of_first_rank(iterations: Iterator[int]) -> Iterator[int | None]:
    """On all ranks what one of them sees, and None at the end, as often as asked."""
    while True:
        found = [next(iterations, None) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)
        yield found[0]
