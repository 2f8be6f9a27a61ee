"""Follows where routers send every token of a step, and makes them send it elsewhere, for tools/route_noise.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_dpop.engine.batches import ReferenceLogps, RowBatch, RowSource
from megatron_dpop.models.experts import Router
from megatron_dpop.models.layout import RowLayout
from megatron_dpop.rows.row import Ints, Row
from megatron_dpop.rows.shares import seen_by_routers

Places = list[tuple[int, int, int]]  # (example, completion, position) of each token; (-1, 0, 0) of padding


class Followed(RowSource):
    """A source whose rows' routes are written down, or replayed from `routes`, "EXAMPLE/COMPLETION" by position."""

    def __init__(self, source: RowSource, routes: dict[str, NDArray[np.int16]], *, replays: bool) -> None:
        self.__dict__.update(source.__dict__)
        self.kept = routes
        self.replays = replays
        self.batches: list[RowBatch] = []
        self.wanted: dict[int, NDArray[np.int16]] = {}  # by row layout: [tokens, layers, experts a token]
        self.found: dict[int, dict[int, Tensor]] = {}  # by row layout and layer: int64 [tokens, experts a token]

    def rows(self, step: int, reference: ReferenceLogps | None) -> list[RowBatch]:
        self.batches = super().rows(step, reference)
        for batch in self.batches:
            self.found[id(batch.layout)] = {}
            if self.kept:
                self.wanted[id(batch.layout)] = self._wanted(self._places(batch))
        return self.batches

    def _places(self, batch: RowBatch) -> Places:
        engine = self.engine
        part, parts = (engine.groups.tp.rank(), engine.groups.tp.size()) if engine.config.sequence_parallel else (0, 1)
        row = token_places(batch.row)
        return [row[at] for at in seen_by_routers(len(row), rank=0, ranks=1, part=part, parts=parts)]

    def _wanted(self, places: Places) -> NDArray[np.int16]:
        empty = np.full_like(next(iter(self.kept.values()))[0], -1)
        return np.stack([empty if of < 0 else self.kept[f"{of}/{completion}"][at] for of, completion, at in places])

    def routes_of_examples(self) -> dict[str, NDArray[np.int16]]:
        """Returns every completion's routes, by position in its text; one rank alone can tell."""
        layers = self.engine.architecture.num_layers
        kept: dict[str, dict[int, NDArray[np.int16]]] = {}
        for batch in self.batches:
            found = self.found[id(batch.layout)]
            per_token = next(iter(found.values())).shape[1]
            tokens = np.full((len(batch.row.tokens), layers, per_token), -1, dtype=np.int16)
            for layer, experts in found.items():
                tokens[:, layer] = experts.numpy()
            for routes, (example, completion, position) in zip(tokens, token_places(batch.row), strict=True):
                if example >= 0:
                    kept.setdefault(f"{example}/{completion}", {})[position] = routes
        whole = {}
        for name, by_position in kept.items():
            trunk = kept[f"{name.split('/')[0]}/0"]  # what completions share stands with the first
            whole[name] = np.stack([(trunk | by_position)[at] for at in range(max(by_position) + 1)])
        return whole

    def moved_share(self) -> float:
        """Returns the share of (token, layer), over all ranks, whose experts are not the kept ones."""
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in self.batches:
            wanted = self.wanted[id(batch.layout)]
            for layer, experts in self.found[id(batch.layout)].items():
                known = wanted[:, layer, 0] >= 0
                differs = (np.sort(wanted[:, layer], -1) != np.sort(experts.numpy(), -1)).any(-1)
                counts += torch.tensor([float((differs & known).sum()), float(known.sum())])
        dist.all_reduce(counts)
        return float(counts[0] / counts[1])


def token_places(row: Row) -> Places:
    """Whose token each of a row's is. What an example's completions share counts as the first one's."""
    places: Places = []
    sequence = 0
    first: Ints = np.searchsorted(row.sequence_example, row.sequence_example)
    for trunk, *branches in row.trees:
        example = int(row.example_ids[row.sequence_example[sequence]])
        completion = sequence - int(first[sequence])
        places += [(example, completion, at) for at in range(trunk)]
        for number, tokens in enumerate(branches):
            places += [(example, completion + number, trunk + at) for at in range(tokens)]
        sequence += len(branches)
    return places + [(-1, 0, 0)] * (len(row.tokens) - len(places))


@contextmanager
def following(source: Followed) -> Iterator[None]:
    """Within it, all routers write down what they choose, or choose what they are told."""
    own = Router.routing

    def routing(router: Router, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layout: Any = router.row
        assert isinstance(layout, RowLayout)
        shares, chosen = own(router, logits, padding_mask)
        layer = router.layer_number - 1
        if source.replays:
            told = torch.from_numpy(source.wanted[id(layout)][:, layer].astype(np.int64))
            ids = torch.where(told < 0, shares.topk(router.topk).indices, told)
            shares, chosen = shares_of(logits.flatten(0, 1), ids, sum_to_one=not router.config.moe_router_pre_softmax)
        # The largest first, as the router's own sum has them: the same routes replayed are the same to the bit.
        source.found[id(layout)][layer] = shares.topk(router.topk).indices
        return shares, chosen

    with patch.object(Router, "routing", routing):
        yield


def shares_of(logits: Tensor, ids: Tensor, *, sum_to_one: bool) -> tuple[Tensor, Tensor]:
    """What `route` would give if it chose these experts: [tokens, experts] both."""
    probabilities = logits.softmax(-1, dtype=torch.float32)
    shares = probabilities.gather(1, ids)
    if sum_to_one:
        shares = shares / shares.sum(-1, keepdim=True)
    empty = torch.zeros_like(probabilities)
    return empty.scatter(1, ids, shares), empty.bool().scatter(1, ids, True)
