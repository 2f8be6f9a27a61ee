"""FLOPs of rows, as formulas: two per multiply-add, matrix products only (PaLM, Chowdhery et al. 2022, appendix B)."""

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from checkpoint_convert.rules.adapters import adapter_tensors
from checkpoint_convert.rules.families import RULES
from dpop_base.architectures import Architecture
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.workload import ExampleCost

# Forward once, backward twice: the gradient of the input and the gradient of the weight.
TRAINING_FACTOR = 3
# A frozen weight has no gradient of its own.
FROZEN_FACTOR = 2


def active_parameters(architecture: Architecture) -> int:
    """Entries of all layers' weight matrices that a token is multiplied by: of experts, of those that it is sent to."""
    heads = architecture.num_attention_heads + 2 * architecture.num_key_value_heads
    attention = architecture.hidden_size * architecture.head_dim * (heads + architecture.num_attention_heads)
    feed_forward = 3 * architecture.hidden_size * architecture.ffn_hidden_size
    if architecture.experts is None:
        return architecture.num_layers * (attention + feed_forward)
    experts, dense = architecture.experts, len(architecture.experts.dense_layers)
    active = experts.per_token * experts.ffn_hidden_size + (experts.shared_ffn_hidden_size or 0)
    gates = experts.count + (1 if experts.shared_ffn_hidden_size else 0)
    mixture = architecture.hidden_size * (3 * active + gates)
    sparse = architecture.num_layers - dense
    return architecture.num_layers * attention + dense * feed_forward + sparse * mixture


def forward_flops[Count: (int, float, NDArray[np.int64])](
    architecture: Architecture, *, tokens: Count, scores: Count, attended: Count
) -> Count:
    """FLOPs of one forward pass, or of each of many: two per multiply-add, matrix products only.

    tokens pass through every layer, `attended` (query, key) pairs through every layer's attention (scores and values:
    2 * 2 * heads * head_dim each), and `scores` positions through the output layer. Padding counts nothing.
    """
    linear = 2 * tokens * active_parameters(architecture)
    attention = 4 * attended * architecture.num_layers * architecture.num_attention_heads * architecture.head_dim
    output = 2 * scores * architecture.hidden_size * architecture.vocab_size
    return linear + attention + output


def training_flops(
    architecture: Architecture, lora: LoraConfig | None, *, tokens: float, scores: float, attended: float
) -> float:
    """FLOPs of a forward and a backward pass, counted as `forward_flops` counts; recomputation counts nothing.

    With LoRA the weights are frozen, and the adapters' own products are added. Attention has no weights.
    """
    forward = forward_flops(architecture, tokens=tokens, scores=scores, attended=attended)
    if lora is None:
        return TRAINING_FACTOR * forward
    attention = forward_flops(architecture, tokens=0.0, scores=0.0, attended=attended)
    adapters = 2 * tokens * adapter_parameters(architecture, lora, of_token=True)
    return FROZEN_FACTOR * (forward - attention) + TRAINING_FACTOR * (attention + adapters)


def adapter_parameters(architecture: Architecture, lora: LoraConfig, *, of_token: bool = False) -> int:
    """Entries of all adapters, which is what LoRA trains; `of_token`: of experts, only of those that one token has."""
    experts, adapters = architecture.experts, (frozenset(lora.targets), lora.rank)
    mixtures = architecture.mixtures_among(range(architecture.num_layers))
    if experts is None or not mixtures:
        return architecture.num_layers * _layer_adapters(architecture, *adapters, 0)
    mixture = replace(architecture, experts=replace(experts, count=1, dense_layers=()))
    dense = replace(architecture, experts=replace(experts, count=1, dense_layers=(0,)))
    counted = experts.per_token if of_token else experts.count
    sparse = mixtures * _layer_adapters(mixture, *adapters, counted)
    return sparse + (architecture.num_layers - mixtures) * _layer_adapters(dense, *adapters, 0)


@cache  # a search of layouts asks thousands of times
def _layer_adapters(architecture: Architecture, targets: frozenset[str], rank: int, experts: int) -> int:
    """Entries of the first layer's adapters, an expert's counted `experts` times."""
    one_layer = replace(architecture, num_layers=1)
    shapes = adapter_tensors(RULES[architecture.family], one_layer, targets, rank)
    return sum(
        rows * columns * (experts if ".experts.experts." in name else 1) for name, (rows, columns) in shapes.items()
    )


def example_flops(architecture: Architecture, cost: ExampleCost) -> float:
    """FLOPs of the forward pass over one mean example, which is all that the reference needs."""
    return forward_flops(architecture, tokens=cost.tokens, scores=cost.scores, attended=cost.attended)


def example_training_flops(architecture: Architecture, lora: LoraConfig | None, cost: ExampleCost) -> float:
    """FLOPs of a forward and a backward pass over one mean example."""
    return training_flops(architecture, lora, tokens=cost.tokens, scores=cost.scores, attended=cost.attended)
