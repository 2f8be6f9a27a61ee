"""A model's log-probability of every token of every pair, by the trainer's own rows, layout and output layer."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.locate import checkpoint_kind, iteration_folder
from megatron_dpop.analysis.spans import PairLogps
from megatron_dpop.checkpoints.checkpoint import load_model
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.engine.forward import logps_only, run_rows
from megatron_dpop.models.scoring import score_tokens
from megatron_dpop.runtime.processes import first_rank_only
from megatron_dpop.training.validation import validation_steps


def load_weights(engine: ModelEngine, model: Path) -> None:
    """Fills the engine with the weights in `model`, of either kind. Raises UserError where they cannot be read."""
    with _as_megatron(model) as folder:
        load_model(engine.modules, engine.architecture, folder)


def token_logps(engine: ModelEngine, source: RowSource, progress: Callable[[int], None]) -> list[PairLogps]:
    """Scores each pair of the source by the weights that the engine holds. Every rank calls it and has all.

    The source is one pass over its pairs in their order.
    """
    tokens = source.dataset.lengths().completion_tokens.astype(np.int64)  # [pairs, 2]
    starts = np.concatenate(([0], np.cumsum(tokens.ravel())))
    flat = torch.zeros(int(starts[-1]), dtype=torch.float32)
    for step in range(validation_steps(source)):
        for result in run_rows(engine, source.rows(step, None), logps_only, forward_only=True, score=score_tokens):
            if not engine.is_metrics_rank:
                continue
            at = 0
            for pair in result.row.example_ids:
                length = int(tokens[pair].sum())
                flat[starts[2 * pair] : starts[2 * pair] + length] = result.logps[at : at + length].cpu()
                at += length
        progress(step + 1)
    on_device = flat.to(engine.device)
    dist.all_reduce(on_device)  # exact: each number is entered by one rank and is zero on the others
    parts = np.split(on_device.cpu().numpy(), starts[1:-1])
    return [PairLogps(chosen, rejected) for chosen, rejected in zip(parts[::2], parts[1::2], strict=True)]


@contextmanager
def _as_megatron(model: Path) -> Iterator[Path]:
    """The model's torch_dist folder; of a Hugging Face one a conversion that is removed afterwards."""
    if checkpoint_kind(model) == "megatron":
        yield iteration_folder(model)
        return
    is_first = dist.get_rank() == 0
    with ExitStack() as stack:
        made = [stack.enter_context(tempfile.TemporaryDirectory(prefix="megatron-dpop-")) if is_first else ""]
        dist.broadcast_object_list(made, src=0)
        target = Path(made[0]) / "model"
        with first_rank_only():
            if is_first:
                hf_to_megatron(model, target, progress=False)
        yield iteration_folder(target)
        dist.barrier()  # none may still read when it is removed
