"""Bytes of the tensors that a layer keeps for its backward pass, each named, and of those that come and go.

The list is that of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", section
4), made for the layers that are built here: RMSNorm, rotary positions, grouped keys, a gated feed-forward, attention
over trees, and no dropout. Its score matrix is not among them: flash attention keeps a sum per query instead (Dao
et al. 2022).
"""

from dataclasses import dataclass
from typing import Literal

from dpop_base.architectures import Architecture
from megatron_dpop.plan.choice import BYTES, LayoutChoice, Recompute, Widths
from megatron_dpop.plan.mixtures import mixture_activations, mixture_backward_bytes, received_tokens
from megatron_dpop.plan.workload import MeanRow

FP32 = BYTES["fp32"]
FP8 = 1


@dataclass(frozen=True)
class Kernels:
    """Which implementation computes a layer, as far as it decides what is kept (`models.build`, `models.spec`)."""

    attention: Literal["blocks", "varlen"]  # `models.attention` in fp32 with masks, or `models.varlen` on gathered keys
    tile: tuple[int, int]  # of logits: scored tokens, vocabulary (`logprobs.chunking.default_chunking`)
    widened_tile: bool  # operands of a tile's products are copied to fp32 first
    gather_buffer: bool  # linear layers gather sequence-parallel inputs into one buffer that stays


TORCH = Kernels(
    attention="blocks",
    tile=(512, 512),
    widened_tile=True,
    gather_buffer=True,
)
TRANSFORMER_ENGINE = Kernels(
    attention="varlen",
    tile=(4096, 4096),
    widened_tile=False,
    gather_buffer=False,
)


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that one layer keeps of one row, by what they are."""

    attention: dict[str, float]  # its half of the layer, outside core attention
    core_attention: dict[str, float]  # what selective recomputation drops
    attention_inputs: dict[str, float]  # what it keeps in their place
    feed_forward: dict[str, float]
    layer_input: float  # all that full recomputation keeps

    @property
    def whole(self) -> float:
        return _sum(self.attention, self.core_attention, self.feed_forward)

    def kept(self, recompute: Recompute) -> float:
        """Bytes kept from the layer's forward pass to its backward pass."""
        if recompute == "full":
            return self.layer_input
        core = self.core_attention if recompute == "none" else self.attention_inputs
        return _sum(self.attention, core, self.feed_forward)

    def recomputed(self, recompute: Recompute) -> float:
        """The most that is alive in addition while the layer's backward pass runs."""
        if recompute == "none":
            return 0.0
        if recompute == "full":
            return self.whole
        # When core attention is computed again, what the feed-forward half kept is gone.
        return max(0.0, _sum(self.core_attention) - _sum(self.feed_forward))


def _sum(*parts: dict[str, float]) -> float:
    return sum(sum(part.values()) for part in parts)


def layer_activations(
    architecture: Architecture, choice: LayoutChoice, row: MeanRow, kernels: Kernels, *, mixture: bool = False
) -> LayerActivations:
    """Returns the activations of one layer, with a `mixture` of experts or without, and one row on one device."""
    widths = Widths.of(architecture, choice)
    tokens, size = row.tokens / choice.context, choice.bytes
    # FP8 keeps the inputs of linear layers as they were multiplied; adapters need them in bf16.
    linear_input = FP8 if choice.fp8 and choice.lora is None else size
    hidden = tokens * widths.hidden / choice.sequence_shards
    norm = {
        "input of the norm": hidden * size,
        "input of the linear layer after it": hidden * linear_input,
    }
    attention = {
        **norm,
        "input of linear_proj": tokens * widths.query * linear_input,
    }
    feed_forward = {
        **norm,
        "output of linear_fc1": 2 * tokens * widths.ffn * size,
        "input of linear_fc2": tokens * widths.ffn * linear_input,
    }
    if mixture:
        feed_forward = {**norm, **mixture_activations(architecture, choice, row)}
    if architecture.qk_norm:
        normed = tokens * (widths.query + widths.key)
        attention["inputs of the query and key norms"] = normed * size
    if architecture.post_norms:
        attention["input of the norm after it"] = feed_forward["input of the norm after it"] = hidden * size
    if choice.lora:
        of_experts = sum(target.startswith("linear_fc") for target in choice.lora.targets) if mixture else 0
        passes = (len(choice.lora.targets) - of_experts) * tokens
        if of_experts:
            passes += of_experts * received_tokens(architecture, choice, row)
        attention["between the adapters' factors"] = passes * choice.lora.rank * size
    is_varlen = kernels.attention == "varlen" and choice.params != "fp32"
    return LayerActivations(
        attention=attention,
        core_attention=_varlen_attention(choice, row, widths) if is_varlen else _block_attention(choice, row, widths),
        attention_inputs={
            "queries": tokens * widths.query * size,
            "output of linear_qkv, of which values are a view": tokens * (widths.query + 2 * widths.key) * size,
        },
        feed_forward=feed_forward,
        layer_input=hidden * size,
    )


def _varlen_attention(choice: LayoutChoice, row: MeanRow, widths: Widths) -> dict[str, float]:
    tokens, size = row.tokens / choice.context, choice.bytes
    return {
        "rotated queries": tokens * widths.query * size,
        "gathered keys and values": 2 * (row.trunk_keys + row.branch_keys) / choice.context * widths.key * size,
        "output before padding": tokens * widths.query * size,
        "log of each query's sum": tokens * widths.heads * FP32,
    }


def _block_attention(choice: LayoutChoice, row: MeanRow, widths: Widths) -> dict[str, float]:
    """Counts scores in fp32 whatever the precision. Context parallelism cuts a row's queries, not its keys."""
    tokens = row.tokens / choice.context
    kept = {
        "queries": tokens * widths.query * FP32,
        "keys and values": 2 * row.tokens * widths.key * FP32,
        "branches' keys and values, with their trunk's": 2 * row.branch_keys / choice.context * widths.key * FP32,
        "masks of branches": row.masked / choice.context * FP32,
        "blocks' outputs, before they are joined": tokens * widths.query * FP32,
        "log of each query's sum": tokens * widths.heads * FP32,
    }
    if choice.params == "fp32" and choice.context == 1:  # values are a view of all that linear_qkv gave
        kept["queries and keys beside the values"] = tokens * (widths.query + widths.key) * FP32
    return kept


def backward_bytes(architecture: Architecture, choice: LayoutChoice, row: MeanRow, *, mixture: bool = False) -> float:
    """The most that one layer's backward pass holds of its own: gradients of activations and of one weight.

    A node's gradients come while what it kept goes, so the peak is at the layer's end, before much has gone: the
    gradient of its output, whole on each rank while linear_fc2 multiplies it, those of linear_fc2's input and of the
    gate, and linear_fc2's weight gradient before it is added to the fp32 sum.
    """
    widths = Widths.of(architecture, choice)
    tokens, size = row.tokens / choice.context, choice.bytes
    hidden = tokens * widths.hidden
    if mixture:
        return mixture_backward_bytes(architecture, choice, row)
    gradients = (hidden + hidden / choice.sequence_shards + 2 * tokens * widths.ffn) * size
    weight = 0 if choice.lora else widths.ffn * widths.hidden * size
    return gradients + weight


def score_bytes(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    """Kept by the last stage of one row: the scored hidden states, whole on each tensor-parallel rank."""
    return row.scores / choice.context * architecture.hidden_size * choice.bytes


def logprob_bytes(architecture: Architecture, choice: LayoutChoice, row: MeanRow, kernels: Kernels) -> float:
    """The most that the chunked log-probabilities hold beyond what is kept.

    Forward: the final norm's output, split and whole, a tile of fp32 logits, its predecessor, and fp32 copies of the
    tile's operands where they are widened. Backward: two tiles, the second in hidden's dtype where operands are not
    widened; the chunk's fp32 gradient of hidden and one fp32 product of its size; the gradient of all scored states.
    """
    hidden, size = architecture.hidden_size, choice.bytes
    scores, tokens = row.scores / choice.context, row.tokens / choice.context
    block = kernels.tile[1]
    chunk = int(min(kernels.tile[0], -(-scores // 64) * 64))
    tile = chunk * block * FP32
    widened = (chunk + block) * hidden * FP32 if kernels.widened_tile and choice.params != "fp32" else 0.0
    output = tokens * hidden * size / choice.sequence_shards
    gathered = tokens * hidden * size if choice.sequence_shards > 1 else 0.0
    forward = output + gathered + 2 * tile + widened
    second = tile if kernels.widened_tile else chunk * block * size
    product = 0.0 if kernels.widened_tile else max(chunk, block) * hidden * FP32
    backward = tile + second + widened + chunk * hidden * FP32 + product + scores * hidden * size
    return max(forward, backward)
