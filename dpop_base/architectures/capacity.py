"""Limits of the tokens that an expert takes, by whatever name: refused wherever a config asks for one."""

from collections.abc import Mapping
from typing import Any

from dpop_base.architectures.fields import Only

WHY = "no token is dropped: with a limit, what a pair's tokens get would depend on the pairs beside it"

# Megatron-Core's and Megatron-LM's, transformers', DeepSpeed's and NeMo's words for the limit itself.
_LIMITS = (
    *("capacity_factor", "expert_capacity", "expert_capacity_factor", "min_capacity", "moe_min_capacity"),
    *("moe_capacity_factor", "moe_expert_capacity_factor", "moe_expert_rank_capacity_factor"),
    *("train_capacity_factor", "eval_capacity_factor", "moe_train_capacity_factor", "moe_eval_capacity_factor"),
)
# And for what is done at the limit: false asks for none.
_SWITCHES = (
    *("drop_tokens", "token_dropping", "moe_token_dropping", "pad_to_capacity", "pad_expert_input_to_capacity"),
    *("moe_pad_expert_input_to_capacity", "drop_and_pad"),
)
# Which tokens are dropped; Megatron has a value for it whether or not there is a limit.
_POLICIES = ("token_drop_policy", "moe_token_drop_policy", "drop_policy")

OF_CAPACITY: dict[str, Only] = {
    **dict.fromkeys((*_LIMITS, *_POLICIES), Only((), WHY)),
    **dict.fromkeys(_SWITCHES, Only((False,), WHY)),
}


def limit_asked(arguments: Mapping[str, Any]) -> str | None:
    """Says "moe_expert_capacity_factor 1.0" of Megatron's arguments that limit an expert; None where none does."""
    for name in (*_LIMITS, *_SWITCHES):
        if arguments.get(name) not in (None, False):
            return f"{name} {arguments[name]}"
    return None
