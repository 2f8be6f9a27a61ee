"""Qwen1: `QWenLMHeadModel`, of which transformers has no class; defaults are those of its own configuration_qwen.py."""

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.family import Family
from dpop_base.architectures.fields import Fields, Only


def _build(fields: Fields) -> Architecture:
    """
    `intermediate_size` counts the gate and the up projection together. Dynamic NTK scaling and logn attention act
    only beyond `seq_length` positions, so that length is the model's maximum here.
    """
    heads = fields.integer("num_attention_heads")
    both = fields.integer("intermediate_size")
    if both % 2:
        raise fields.error(f"intermediate_size is {both}", "for Qwen1 it counts gate and up rows and must be even")
    return Architecture(
        family="qwen",
        num_layers=fields.integer("num_hidden_layers"),
        hidden_size=fields.integer("hidden_size"),
        ffn_hidden_size=both // 2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=fields.integer("kv_channels"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("seq_length"),
        norm_epsilon=fields.number("layer_norm_epsilon"),
        rope_theta=fields.number("rotary_emb_base"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=True,
    )


QWEN = Family(
    model_type="qwen",
    model_classes=("QWenLMHeadModel",),
    config_class=None,
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "intermediate_size": 22016,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "tie_word_embeddings": False,
        # seq_length has none: it decides where dynamic NTK scaling begins.
    },
    only={
        "no_bias": Only((True,), "only c_attn has a bias"),
        "use_cache_quantization": Only((False,), "keys and values are not quantized"),
        "rotary_pct": Only((1.0,), "part of each head would keep its positions unrotated"),
    },
    # Those that act within `seq_length` positions are above.
    harmless=frozenset(
        (
            *("use_dynamic_ntk", "use_logn_attn", "max_position_embeddings", "use_cache_kernel"),
            *("fp16", "bf16", "fp32", "softmax_in_fp32", "onnx_safe"),
        )
    ),
    build=_build,
)
