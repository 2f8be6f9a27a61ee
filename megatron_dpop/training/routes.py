"""Counts the tokens that the policy sends to the same experts as the reference does.

Of a completion one token is looked at, in each layer; of a dataset every n-th example, so that at most 65,536 are kept
(`megatron_dpop.rows.routed`): four bytes for each layer and completion. What is kept of a token's experts is a code of
their set (`megatron_dpop.models.experts.expert_codes`).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dpop_base.metric_names import ROUTE_AGREEMENT
from megatron_dpop.engine.batches import ReferenceRoutes, RowBatch, RowSource
from megatron_dpop.engine.engine import ModelEngine
from megatron_dpop.rows.routed import routed_every
from megatron_dpop.rows.row import Ints
from megatron_dpop.runtime.devices import to_device

UNKNOWN = -1


def no_routes(source: RowSource) -> ReferenceRoutes | None:
    """A table without entries; None for models without experts."""
    architecture = source.engine.architecture
    if architecture.experts is None:
        return None
    completions = source.dataset.lengths().completion_tokens.shape[1]
    looked_at = -(-len(source) // routed_every(len(source)))
    return np.full((looked_at, completions, architecture.num_layers), UNKNOWN, dtype=np.int32)


def enter_routes(
    table: ReferenceRoutes, rows: Sequence[RowBatch], covered: NDArray[np.bool_], source: RowSource
) -> None:
    """Writes down where this rank's layers have sent its tokens, but of examples that are `covered`, [examples]."""
    for row in rows:
        layers, codes = _codes([row])
        if not layers:
            return
        examples, completions = _places(row)
        new = np.flatnonzero(~covered[examples])
        at = examples[new, None] // routed_every(len(source)), completions[new, None], np.array(layers, dtype=np.int64)
        table[at] = codes.cpu().numpy()[:, new].T


def share_routes(table: ReferenceRoutes, engine: ModelEngine) -> None:
    """Gives every rank what each of them has entered."""
    on_device = torch.from_numpy(table).to(engine.device)
    dist.all_reduce(on_device, op=dist.ReduceOp.MAX)
    table[...] = on_device.cpu().numpy()


def count_agreeing(rows: Sequence[RowBatch], table: ReferenceRoutes, source: RowSource) -> Tensor:
    """fp64 [layers, 2]: of this rank's tokens those with the reference's experts, and all whose experts are known."""
    counts = torch.zeros(table.shape[2], 2, dtype=torch.float64, device=source.engine.device)
    layers, codes = _codes(rows)
    if layers:
        places = [_places(row) for row in rows]
        examples, completions = (np.concatenate(parts) for parts in zip(*places, strict=True))
        wanted = table[examples // routed_every(len(source)), completions][:, layers].T
        expected = to_device(wanted, codes.device)
        agreeing = torch.stack(((codes == expected).sum(1), (expected != UNKNOWN).sum(1)), dim=1)
        counts.index_add_(0, to_device(np.array(layers), counts.device), agreeing.double())
    return counts


def agreement_metrics(counts: Sequence[float]) -> dict[str, float]:
    """The share that agrees, of all layers and of each; empty where nothing was counted. counts: [layers * 2]."""
    layers = {layer: (counts[2 * layer], counts[2 * layer + 1]) for layer in range(len(counts) // 2)}
    known = {layer: pair for layer, pair in layers.items() if pair[1]}
    if not known:
        return {}
    agreeing, all_known = (sum(pair[at] for pair in known.values()) for at in (0, 1))
    by_layer = {f"{ROUTE_AGREEMENT}/{layer}": agreed / count for layer, (agreed, count) in known.items()}
    return {ROUTE_AGREEMENT: agreeing / all_known, **by_layer}


def _codes(rows: Sequence[RowBatch]) -> tuple[list[int], Tensor]:
    """This rank's layers with experts, and what they have filled in, int32 [layers, tokens of all rows]."""
    routes = [row.layout.routes for row in rows]
    filled = [route.codes for route in routes if route is not None]
    layers = sorted(filled[0]) if filled else []
    if not layers:
        return [], torch.empty(0, 0, dtype=torch.int32)
    return layers, torch.stack([torch.cat([codes[layer] for codes in filled]) for layer in layers])


def _places(row: RowBatch) -> tuple[Ints, Ints]:
    """Whose the row's tokens are: their examples, as indices into the dataset, and the completion of each."""
    assert row.routed is not None
    examples = row.row.sequence_example
    return row.row.example_ids[examples[row.routed]], row.routed - np.searchsorted(examples, examples[row.routed])
