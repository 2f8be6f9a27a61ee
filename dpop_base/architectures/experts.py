"""A mixture of experts as Qwen's and Mixtral's `config.json` describe it."""

from dpop_base.architectures.architecture import Experts
from dpop_base.architectures.fields import Fields

# What trainers add to the loss or to the router's inputs; a forward pass knows nothing of them.
OF_TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef"})


def read_experts(
    fields: Fields, *, count: int, ffn_hidden_size: int, shares_sum_to_one: bool, shared_ffn_hidden_size: int | None
) -> Experts | None:
    """None where no layer has experts. Raises UserError for routing that cannot be trained."""
    chosen = fields.integer("num_experts_per_tok")
    if chosen > count:
        raise fields.error(f"num_experts_per_tok is {chosen} of {count} experts", "a token cannot have more than all")
    if chosen == 1 and shares_sum_to_one:
        raise fields.error(
            "num_experts_per_tok is 1, and a token's only share is always 1, whatever the router says",
            "no gradient would reach the router; only models with more experts a token are supported",
        )
    layers = fields.integer("num_hidden_layers")
    dense = _dense_layers(fields, layers)
    if len(dense) == layers:
        return None
    return Experts(
        count=count,
        per_token=chosen,
        ffn_hidden_size=ffn_hidden_size,
        shares_sum_to_one=shares_sum_to_one,
        shared_ffn_hidden_size=shared_ffn_hidden_size,
        dense_layers=dense,
    )


def _dense_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """Those that `mlp_only_layers` names, and all but each n-th, by `decoder_sparse_step`; of Mixtral none."""
    if "decoder_sparse_step" not in fields.defaults:
        return ()
    step, named = fields.integer("decoder_sparse_step"), fields.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(type(layer) is int for layer in named):
        raise fields.error(f"mlp_only_layers is {named!r}", "it must be a list of layers, counted from 0")
    return tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)
