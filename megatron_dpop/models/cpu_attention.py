"""Attention over trees on CPUs, as one autograd function: torch's fused kernel forward, matrix products backward.

The fused kernel's own backward pass reaches a tenth of what products of the same shapes do, and block by block autograd
would keep masks, joined keys and their gradients for every layer. This keeps the inputs, the output and one number per
query and head. Products of the backward pass are summed in fp32; where queries, keys and values came from bf16 their
operands may be narrowed to it (`megatron_dpop.logprobs.matmul.narrow_operands`).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from megatron_dpop.logprobs.matmul import narrow_operands
from megatron_dpop.rows.context import AttentionPlan


def attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    softmax_scale: float,
    window: int | None = None,
    source_dtype: torch.dtype | None = None,
) -> Tensor:
    """`megatron_dpop.models.attention.attend_blocks` for tensors on the CPU, fp32 or fp64, with its arguments.

    `source_dtype`: of the activations before they were widened.
    """
    return _TreeAttention.apply(query, key, value, plan, softmax_scale, window, source_dtype or query.dtype)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        scale: float,
        window: int | None,
        source_dtype: torch.dtype,
    ) -> Tensor:
        output = torch.zeros_like(query) if () in plan.seen else torch.empty_like(query)
        sums = query.new_zeros(query.shape[:2])  # log of each query's sum, [tokens, heads]
        keys, values = key.split(plan.key_tokens), value.split(plan.key_tokens)
        at = 0
        for tokens, seen, mask in zip(plan.query_tokens, plan.seen, _masks(plan, window, query.dtype), strict=True):
            block = slice(at, at + tokens)
            at += tokens
            if not seen:
                continue
            seen_keys, seen_values = _joined(keys, seen), _joined(values, seen)
            is_causal = tokens == len(seen_keys) and (window is None or window >= tokens)
            mixed, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _heads_first(query[block]),
                _heads_first(seen_keys),
                _heads_first(seen_values),
                0.0,
                is_causal,
                attn_mask=None if is_causal else mask,
                scale=scale,
            )
            output[block] = mixed[0].transpose(0, 1)
            sums[block] = log_sums[0].t()
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.options = plan, scale, window, source_dtype
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, sums = ctx.saved_tensors
        plan, scale, window, source_dtype = ctx.options
        query_grad, key_grad, value_grad = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        along = torch.linalg.vecdot(grad, output)  # [tokens, heads]
        keys, values = key.split(plan.key_tokens), value.split(plan.key_tokens)
        key_grads, value_grads = key_grad.split(plan.key_tokens), value_grad.split(plan.key_tokens)
        at = 0
        with narrow_operands(torch.empty(0, dtype=source_dtype)):
            masks = _masks(plan, window, query.dtype)
            for tokens, seen, mask in zip(plan.query_tokens, plan.seen, masks, strict=True):
                block = slice(at, at + tokens)
                at += tokens
                if not seen:
                    continue
                seen_keys, seen_values = _joined(keys, seen), _joined(values, seen)
                query_grad[block], keys_part, values_part = _block_gradients(
                    query[block], seen_keys, seen_values, sums[block], grad[block], along[block], mask, scale
                )
                start = 0
                for piece in seen:
                    stop = start + plan.key_tokens[piece]
                    key_grads[piece].add_(keys_part[start:stop])
                    value_grads[piece].add_(values_part[start:stop])
                    start = stop
        return query_grad, key_grad, value_grad, None, None, None, None


def _block_gradients(
    query: Tensor,  # [Q, heads, head_dim]
    key: Tensor,  # [K, groups, head_dim]
    value: Tensor,  # [K, groups, head_dim]
    sums: Tensor,  # [Q, heads]
    grad: Tensor,  # [Q, heads, head_dim], of the output
    along: Tensor,  # [Q, heads], the gradient's product with the output
    mask: Tensor,  # [Q, K], added
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three, from the recomputed weights (Dao et al. 2022, algorithm 4, in one tile)."""
    groups = key.shape[1]
    queries, grads = _grouped(query, groups), _grouped(grad, groups)  # [groups, heads / groups * Q, head_dim]
    keys, values = key.transpose(0, 1), value.transpose(0, 1)
    weights = torch.baddbmm(_grouped(sums[..., None], groups), queries, keys.transpose(1, 2), beta=-1, alpha=scale)
    weights.view(groups, -1, *mask.shape).add_(mask)
    weights.exp_()
    value_grad = torch.bmm(weights.transpose(1, 2), grads)
    scores_grad = torch.bmm(grads, values.transpose(1, 2)).sub_(_grouped(along[..., None], groups)).mul_(weights)
    query_grad = torch.bmm(scores_grad, keys).mul_(scale)
    key_grad = torch.bmm(scores_grad.transpose(1, 2), queries).mul_(scale)
    heads_apart = query_grad.view(groups, -1, *query.shape[::2])  # [groups, heads / groups, Q, head_dim]
    return heads_apart.permute(2, 0, 1, 3).reshape(query.shape), key_grad.transpose(0, 1), value_grad.transpose(0, 1)


def _grouped(states: Tensor, groups: int) -> Tensor:
    """[Q, heads, size] to [groups, heads / groups * Q, size]: the heads that share keys, one below the other."""
    return states.transpose(0, 1).reshape(groups, -1, states.shape[-1])


def _heads_first(states: Tensor) -> Tensor:
    """[tokens, heads, head_dim] to [1, heads, tokens, head_dim], a view."""
    return states.transpose(0, 1)[None]


def _joined(pieces: tuple[Tensor, ...], seen: tuple[int, ...]) -> Tensor:
    return pieces[seen[0]] if len(seen) == 1 else torch.cat([pieces[at] for at in seen])


@lru_cache(maxsize=4)  # every layer of a row asks anew; a pipeline has several rows under way
def _masks(plan: AttentionPlan, window: int | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """For each block [queries, keys]: 0 where its aligned causal mask and the window let a query see, else -inf."""
    return tuple(
        _mask(queries, keys, window, dtype) for queries, keys in zip(plan.query_tokens, plan.seen_tokens(), strict=True)
    )


def _mask(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if window is not None:
        seen = seen.triu(keys - queries - window + 1)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen, -torch.inf)
