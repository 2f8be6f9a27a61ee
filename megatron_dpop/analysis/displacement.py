"""How much training on a pair may displace its chosen answer: scores of the hidden states of both answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.engine.batches import RowBatch, RowSource
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.models.scoring import score_states
from megatron_dpop.training.validation import validation_steps


@dataclass(frozen=True)
class Displacement:
    """CHES of each pair (Razin et al. 2024, arXiv 2410.08847, definition 2): <s(w), s(l)> - |s(w)|^2.

    s(y) is the sum of the last hidden states, those that the output layer takes, at the places that predict the
    tokens of y. The higher, the more a step on the pair lowers the chosen answer too, as the paper shows.
    """

    ches: NDArray[np.float64]  # [pairs]
    ches_per_token: NDArray[np.float64]  # [pairs], with the means of states in place of their sums


def displacement(engine: ModelEngine, source: RowSource, progress: Callable[[int], None]) -> Displacement:
    """Scores each pair of the source by the weights that the engine holds. Every rank calls it and has all scores.

    The source is one pass over its pairs in their order.
    """
    products = torch.zeros(len(source), 2, dtype=torch.float64)  # [pairs, (<s(w), s(l)>, |s(w)|^2)]
    for step in range(validation_steps(source)):
        for pairs, found in run_rows(
            engine, source.rows(step, None), _row_products, forward_only=True, score=score_states
        ):
            if engine.is_metrics_rank:
                products[torch.from_numpy(pairs)] = found.cpu()
        progress(step + 1)
    on_device = products.to(engine.device)
    dist.all_reduce(on_device)  # exact: each number is entered by one rank and is zero on the others
    cross, own = on_device.cpu().numpy().T * engine.architecture.logits_divisor**2  # the model divided what it gave
    chosen, rejected = source.dataset.lengths().completion_tokens.astype(np.float64).T
    return Displacement(cross - own, cross / (chosen * rejected) - own / chosen**2)


def _row_products(row: RowBatch, states: Tensor) -> tuple[Tensor, tuple[NDArray[np.int64], Tensor]]:
    """A `RowLoss` that collects the products of each pair's sums of states, fp32 [sequences, hidden], chosen first."""
    chosen, rejected = states.detach().double().unflatten(0, (-1, 2)).unbind(1)
    products = torch.stack(((chosen * rejected).sum(-1), chosen.square().sum(-1)), dim=-1)
    return states.sum(), (row.row.example_ids, products)


def rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing theirs. NaN where either is constant."""
    first, second = (_ranks(values) for values in (left, right))
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks
