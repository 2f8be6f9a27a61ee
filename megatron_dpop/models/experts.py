"""A layer of experts: Megatron-Core's own, with our gate and our router."""

import hashlib
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_dpop.models.layout import RowExamples, RowLayout
from megatron_dpop.models.router_losses import balance_loss, z_loss

CODE_BITS = 26  # 32 of them add up to less than 2^31


def route(logits: Tensor, *, per_token: int, shares_sum_to_one: bool) -> tuple[Tensor, Tensor]:
    """Each token's share of each expert, and which experts it goes to: fp32 and bool, both [tokens, experts].

    transformers' order of operations. A function of the logits alone: Megatron-Core's picks experts in another order
    in a pass without gradients, so that a policy would differ from itself as the reference in the last bits.
    """
    probabilities = logits.softmax(-1, dtype=torch.float32)
    shares, chosen = probabilities.topk(per_token, dim=-1)
    if shares_sum_to_one:
        shares = shares / shares.sum(-1, keepdim=True)
    empty = torch.zeros_like(probabilities)
    return empty.scatter(1, chosen, shares), empty.bool().scatter(1, chosen, True)


def expert_codes(count: int) -> Tensor:
    """A number for each expert, int32 [experts], whose sums tell sets of up to 32 of them apart, all but surely."""
    digests = [hashlib.sha256(f"expert {expert}".encode()).digest() for expert in range(count)]
    return torch.tensor([int.from_bytes(digest[:4]) >> (32 - CODE_BITS) for digest in digests], dtype=torch.int32)


class Router(TopKRouter):
    """Sends each token to its experts, all of them, however many tokens these have.

    Counts the tokens of each expert in passes with gradients: in training, and there once, recomputed or not. Writes
    the experts of some tokens into the row that passes its layer (`follow_rows`).
    """

    assigned: Tensor | None = None  # int64 [experts], since `take_assigned`
    row: RowLayout | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("codes", expert_codes(self.num_experts), persistent=False)

    def take_assigned(self) -> Tensor | None:
        """Returns the counts, and begins anew."""
        counts, self.assigned = self.assigned, None
        return counts

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """fp32 [tokens, 1, experts] to what `route` gives."""
        logits = logits.flatten(0, 1)
        shares, chosen = route(logits, per_token=self.topk, shares_sum_to_one=not self.config.moe_router_pre_softmax)
        if torch.is_grad_enabled():
            counts = chosen.sum(0)
            self.assigned = counts if self.assigned is None else self.assigned + counts
            if self.row is not None and self.row.examples is not None:
                # Its gradient is added to the step's, and the shares are what they were.
                shares = MoEAuxLossAutoScaler.apply(shares, self._losses(logits, chosen, self.row.examples))
        if self.row is not None and self.row.routes is not None:
            of_tokens = chosen.index_select(0, self.row.routes.tokens)
            self.row.routes.codes[self.layer_number - 1] = (of_tokens * self.codes).sum(-1, dtype=torch.int32)
        return shares, chosen

    def _losses(self, logits: Tensor, chosen: Tensor, row: RowExamples) -> Tensor:
        """What the router's own losses add to the step's, fp32 scalar. Megatron-Core's divide by a count of tokens."""
        balance = balance_loss(
            logits.softmax(-1, dtype=torch.float32), chosen, row, per_token=self.topk, group=self.tp_cp_group
        )
        both = torch.stack((balance, z_loss(logits, row))) / row.of_step
        row.losses[self.layer_number - 1] = both.detach()
        return self.config.balance_loss * both[0] + self.config.z_loss * both[1]


def freeze_routers(model: GPTModel) -> None:
    """Leaves the routers' weights out of training: no gradient, no optimizer state."""
    for layer in model.decoder.layers:
        if isinstance(router := getattr(layer.mlp, "router", None), Router):
            router.requires_grad_(False)


def follow_rows(model: GPTModel) -> None:
    """Lets each router know the row that passes its layer, in recomputation too."""
    for layer in model.decoder.layers:
        if isinstance(router := getattr(layer.mlp, "router", None), Router):
            layer.register_forward_pre_hook(partial(_tell, router), with_kwargs=True)


def _tell(router: Router, layer: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    router.row = named["packed_seq_params"]


def set_experts(layer: TransformerLayerSubmodules, gate: Any) -> None:
    """Puts the gate into every expert of a layer's spec, and our router before them."""
    parts = layer.mlp.keywords["submodules"]
    parts.router = Router
    parts.experts.keywords["submodules"].activation_func = gate
    parts.shared_experts.keywords["submodules"].activation_func = gate
    # The norm before experts is a module of its own, and has its own name, with Transformer Engine and without.
    keys = layer.sharded_state_dict_keys_map
    layer.sharded_state_dict_keys_map = {name: key for name, key in keys.items() if not name.startswith("pre_mlp_")}
