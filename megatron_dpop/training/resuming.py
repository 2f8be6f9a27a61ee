"""Which weights a run begins or goes on with: its newest checkpoint that is whole, or those that it starts from."""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from dpop_base.checkpoint_names import iteration_name
from dpop_base.errors import UserError
from megatron_dpop.checkpoints import checkpoint
from megatron_dpop.checkpoints.complete import complete_iterations
from megatron_dpop.checkpoints.digests import digests_by_all_ranks
from megatron_dpop.checkpoints.intact import damage
from megatron_dpop.engine.engine import Engine
from megatron_dpop.training.weights import StartingWeights


def load_policy(engine: Engine, checkpoints: Path, weights: StartingWeights, say: Callable[[str], None]) -> int:
    """Fills the engine; returns the steps already taken. Every rank calls it. Raises UserError.

    Each checkpoint is read wholly before anything of it is loaded, and nothing of a damaged one is taken.
    """
    if engine.adapters:
        weights.load(engine)
    candidates = complete_iterations(checkpoints, say)
    is_half_loaded = False
    while True:
        found = [next(candidates, None) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)  # all ranks go on from what one of them saw
        iteration = found[0]
        if iteration is None:
            break
        folder = checkpoints / iteration_name(iteration)
        reason = damage(folder, digests_by_all_ranks)
        if reason is None:
            try:
                checkpoint.resume(engine, checkpoints, iteration)
            except UserError as error:  # of a checkpoint without checksums, an older version's
                is_half_loaded = True
                reason = str(error)
            else:
                say(f"resuming after step {iteration} from {checkpoints}")
                return iteration
        say(f"passing over {folder}: {reason}")
    if is_half_loaded:
        raise UserError(f"{checkpoints}: no checkpoint can be loaded; restore one, or remove them to begin anew")
    if not engine.adapters:
        weights.load(engine)
    return 0
