"""A decoder's shape and options, independent of any framework (no torch here)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency-dependent scaling of rotary positions (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (`rope_type: linear`)."""

    factor: float


@dataclass(frozen=True)
class YarnScaling:
    """YaRN, arXiv 2309.00071 (`rope_type: yarn`): long waves divided by the factor, short ones kept."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # of cosines and sines
    truncate: bool = True  # the ramp begins and ends at whole dimensions


@dataclass(frozen=True)
class ShortScaling:
    """LongRoPE, arXiv 2402.13753 (`rope_type: longrope`), as it is within the original length."""

    factors: tuple[float, ...]  # of each pair of dimensions' wave length
    attention_factor: float = 1.0  # of cosines and sines


Scaling = RopeScaling | LinearScaling | YarnScaling | ShortScaling


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of a layer's feed-forward: a router sends each token to some of them."""

    count: int
    per_token: int
    ffn_hidden_size: int  # of each
    shares_sum_to_one: bool  # of a token's experts; otherwise each has its probability among all experts
    shared_ffn_hidden_size: int | None = None  # of one more that sees every token, behind a sigmoid gate
    dense_layers: tuple[int, ...] = ()  # counted from 0, with the plain feed-forward


@dataclass(frozen=True)
class Architecture:
    """What both the converter and the model builder need to know of a model, read from its `config.json`."""

    family: str  # which table of rules: "llama", "qwen2", ...
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int  # rows of the gate projection, and of the up projection; with experts: of dense layers
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # true size, never padded
    max_position_embeddings: int  # up to which the model is computed as here, rope scaling included
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Scaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None  # tokens that a token sees, itself included
    full_attention_layers: tuple[int, ...] = ()  # counted from 0, where others slide a window
    sliding_rope_theta: float | None = None  # of the layers that slide, unscaled, where it is another
    unrotated_layers: tuple[int, ...] = ()  # counted from 0, whose attention knows no positions
    rotary_percent: float = 1.0  # of each head's dimensions; the rest keeps no position
    rotary_interleaved: bool = False  # rotates each even dimension against the odd one after it
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    post_norms: bool = False  # norms after attention and feed-forward too, before they are added
    zero_centered_norms: bool = False  # norms multiply by 1 + weight
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the feed-forward's gate
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and feed-forward add
    logits_divisor: float = 1.0
    experts: Experts | None = None

    def has_experts(self, layer: int) -> bool:
        """Says it of a layer, counted from 0."""
        return self.experts is not None and layer not in self.experts.dense_layers

    def mixtures_among(self, layers: Sequence[int]) -> int:
        """Counts those of the layers that have experts."""
        return 0 if self.experts is None else len(layers) - sum(dense in layers for dense in self.experts.dense_layers)

    @property
    def layers_are_alike(self) -> bool:
        """False where only some layers have experts: Megatron then stores each under a key of its own."""
        return self.experts is None or not self.experts.dense_layers

    @property
    def expert_pattern(self) -> list[int] | None:
        """Megatron's `moe_layer_freq`: 1 for each layer with experts, None where all layers are alike."""
        return None if self.layers_are_alike else [int(self.has_experts(layer)) for layer in range(self.num_layers)]

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated, the first ones."""
        return int(self.head_dim * self.rotary_percent)

    @property
    def unrotated_pattern(self) -> list[int] | None:
        """Megatron's `no_rope_freq`: 1 for each layer without rotary positions, None where all have them."""
        return (
            [int(layer in self.unrotated_layers) for layer in range(self.num_layers)] if self.unrotated_layers else None
        )

    @property
    def window_pattern(self) -> list[int] | None:
        """Megatron's `window_attn_skip_freq`: 1 for each layer that slides a window, None where all do or none."""
        if self.sliding_window is None or not self.full_attention_layers:
            return None
        return [int(layer not in self.full_attention_layers) for layer in range(self.num_layers)]

    def window(self, layer: int) -> int | None:
        """Returns the window of a layer, counted from 0."""
        return None if layer in self.full_attention_layers else self.sliding_window
