"""Architectures by their published shapes."""

from dataclasses import replace

from dpop_base.architectures import Architecture
from dpop_base.architectures.architecture import Experts

QWEN_72B = Architecture(
    family="qwen",
    num_layers=80,
    hidden_size=8192,
    ffn_hidden_size=24576,
    num_attention_heads=64,
    num_key_value_heads=64,
    head_dim=128,
    vocab_size=152064,
    max_position_embeddings=32768,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    qkv_bias=True,
)
QWEN2_72B = replace(QWEN_72B, family="qwen2", ffn_hidden_size=29568, num_key_value_heads=8)
SMAUG_72B = replace(QWEN_72B, family="llama", attention_output_bias=True)
QWEN3_32B = Architecture(
    family="qwen3",
    num_layers=64,
    hidden_size=5120,
    ffn_hidden_size=25600,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    qk_norm=True,
)
SMOLLM2_135M = Architecture(
    family="llama",
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    norm_epsilon=1e-5,
    rope_theta=1e5,
    tied_embeddings=True,
)
SMALL = Architecture(
    family="qwen2",
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=704,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=2000,
    max_position_embeddings=4096,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    qkv_bias=True,
)
# Every token goes to every expert: how many tokens each has is then certain, whatever the weights.
MIXTURE = replace(
    SMALL,
    family="qwen3_moe",
    qkv_bias=False,
    qk_norm=True,
    experts=Experts(count=4, per_token=4, ffn_hidden_size=192, shares_sum_to_one=True),
)
SHARED_MIXTURE = replace(
    MIXTURE,
    family="qwen2_moe",
    qkv_bias=True,
    qk_norm=False,
    experts=Experts(
        count=4,
        per_token=4,
        ffn_hidden_size=128,
        shares_sum_to_one=False,
        shared_ffn_hidden_size=256,
        dense_layers=(0, 2),
    ),
)
