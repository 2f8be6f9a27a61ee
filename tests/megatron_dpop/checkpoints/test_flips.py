"""A checkpoint in which one bit has changed is refused, or loads as if none had."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from dpop_base.checkpoint_names import iteration_name
from dpop_base.errors import UserError
from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import model_and_pairs, write_config
from tests.training import train_here

FLIPS, SAVED = 60, 2


def _tensors(state: Any) -> dict[str, torch.Tensor]:
    """Returns what a run's state holds by Megatron's keys, without copying."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    parts = (part for part in nested_values(state) if isinstance(part, ShardedTensor | ShardedTensorFactory))
    return {part.key: part.data for part in parts if part.data is not None}


def _try_flips(tree: dict[str, Any]) -> tuple[int, int]:
    """How many flips were refused, and how many had no effect. Fails where one has an effect."""
    train_here(tree)

    from megatron_dpop.checkpoints import checkpoint
    from megatron_dpop.checkpoints.complete import incompleteness
    from megatron_dpop.checkpoints.digests import digests_by_all_ranks
    from megatron_dpop.checkpoints.intact import damage
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.run import build_run

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)
    engine = build_run(config, read_inputs(config, progress=False), device).engine
    checkpoints = Path(config.run.dir, "checkpoints")
    folder = checkpoints / iteration_name(SAVED)
    checkpoint.resume(engine, checkpoints, SAVED)
    wanted = {key: value.clone() for key, value in _tensors(checkpoint.run_state(engine, SAVED)).items()}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    draw, refused = random.Random(0), 0
    for number in range(FLIPS):
        path = files[number % len(files)]  # the small ones too
        content = path.read_bytes()
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        try:
            reason = incompleteness(folder) or damage(folder, digests_by_all_ranks, tensors=False)
            if reason is None:
                with torch.no_grad():
                    for value in _tensors(checkpoint.run_state(engine, SAVED)).values():
                        value.zero_()
                checkpoint.resume(engine, checkpoints, SAVED)
        except UserError as error:
            reason = str(error)
        path.write_bytes(content)
        if reason is not None:
            refused += 1
            continue
        found = _tensors(checkpoint.run_state(engine, SAVED))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), (path.name, at, bit)
    leave_model_parallel()
    return refused, FLIPS - refused


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_without_effect(tmp_path: Path) -> None:
    folder = model_and_pairs(tmp_path, 8)
    run = {"dir": str(tmp_path / "run")}
    tree = write_config(folder, folder / "model", train={"steps": SAVED}, checkpoint={"every": SAVED}, run=run)
    refused, harmless = run_ranks(_try_flips, 1, tree)[0]
    assert refused > 0.9 * FLIPS, harmless
