"""
Fields that the `config.json` of any family may carry. Proof that one changes nothing is that no causal language model
of transformers reads it in its forward pass, or reads only the value that is allowed here.
"""

from typing import Any

from dpop_base.architectures.capacity import OF_CAPACITY
from dpop_base.architectures.fields import Only

# What most of transformers' config classes take where a field is absent: a family's table names what it takes instead.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": None,
}

# fmt: off
_OF_EVERY_CONFIG = (
    "architectures", "model_type", "auto_map", "custom_pipelines", "transformers_version", "torch_dtype", "dtype",
    "initializer_range", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "prefix",
    "task_specific_params", "return_dict", "output_attentions", "output_hidden_states", "torchscript",
    "tf_legacy_loss", "use_bfloat16", "xla_device", "chunk_size_feed_forward", "gradient_checkpointing",
    "tie_last_hidden_states", "attn_implementation", "experts_implementation", "name_or_path",
    "base_model_tp_plan", "base_model_pp_plan",
    "is_decoder",  # read by encoders alone
    "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "tokenizer_class", "classifier_dropout",
)
_OF_GENERATION = (
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "max_length", "min_length", "max_new_tokens", "min_new_tokens", "max_time",
    "stop_strings", "early_stopping", "do_sample", "num_beams", "num_beam_groups", "num_return_sequences",
    "penalty_alpha", "dola_layers", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p",
    "epsilon_cutoff", "eta_cutoff", "diversity_penalty", "repetition_penalty", "encoder_repetition_penalty",
    "length_penalty", "exponential_decay_length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "force_words_ids", "constraints", "renormalize_logits", "remove_invalid_values",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "token_healing", "guidance_scale",
    "watermarking_config", "low_memory", "cache_implementation", "cache_config", "max_cache_len",
    "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config", "use_mtp",
    "output_logits", "output_scores", "return_dict_in_generate", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "speculation_type",
)
# What trainers and other libraries note in a config: lengths that they trained or truncate to, their own versions.
_NOTES_OF_TOOLS = (
    "transformers.js_config", "max_sequence_length", "seq_length", "max_seq_len", "max_seq_length",
    "model_max_length", "tokenizer_max_length", "internal_version", "unsloth_version", "unsloth_fixed",
    "unsloth_optimized", "neftune_noise_alpha", "is_llama_config", "pretraining_tp", "use_flash_attn",
    "use_flash_attention", "use_flash_attention_2", "flash_attention", "num_logits_to_keep", "multiple_of",
    "keys_to_ignore_at_inference", "license", "bos_token", "eos_token", "pad_token", "eos_token_ids",
)
# fmt: on
HARMLESS = frozenset((*_OF_EVERY_CONFIG, *_OF_GENERATION, *_NOTES_OF_TOOLS))

_NO_DROPOUT = Only((0, 0.0), "training runs without dropout")
_DECODER = Only((False,), "only a causal decoder by itself is built")
_ROTARY = Only((False,), "positions are rotary, one number a token, the first half of a head against the second")
_UNSCALED = Only((1, 1.0), "the computation would be scaled by it")
_UNCAPPED = Only((), "logits would be capped")
_UNQUANTIZED = Only(({}, False), "weights must be stored unquantized")

COMMON: dict[str, Only] = {
    "is_encoder_decoder": _DECODER,
    "add_cross_attention": _DECODER,
    "cross_attention_hidden_size": Only((), "only a causal decoder by itself is built"),
    "tie_encoder_decoder": _DECODER,
    "is_causal": Only((True,), "attention is causal"),
    "use_bidirectional_attention": Only((False,), "attention is causal"),
    "attention_chunk_size": Only((), "attention sees all earlier tokens, or a sliding window"),
    "pruned_heads": Only(({}, []), "every layer has the same heads"),
    "per_layer_config": Only(({},), "layers are alike"),
    "transformers_weights": Only(("model.safetensors",), "weights are read under their usual names"),
    "quantization_config": _UNQUANTIZED,
    "quantization": _UNQUANTIZED,
    "compression_config": _UNQUANTIZED,
    **dict.fromkeys(
        (
            *("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "dropout", "residual_dropout"),
            *("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_probs_dropout_prob", "embedding_dropout"),
            *("attn_dropout_prob", "emb_dropout_prob", "mlp_dropout", "token_dropout", "layerdrop"),
        ),
        _NO_DROPOUT,
    ),
    **dict.fromkeys(("use_mrope", "rope_interleaved", "alibi", "use_alibi"), _ROTARY),
    "rotary_pct": Only((1, 1.0), "part of each head would keep its positions unrotated"),
    "rotary_percent": Only((1, 1.0), "part of each head would keep its positions unrotated"),
    **dict.fromkeys(
        (
            *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"),
            *("lm_head_multiplier", "rope_ratio"),
        ),
        _UNSCALED,
    ),
    **dict.fromkeys(("logit_softcapping", "final_logit_softcapping", "attn_logit_softcapping"), _UNCAPPED),
    "scale_attn_weights": Only((True,), "attention scores are divided by the root of head_dim"),
    "scale_attn_by_inverse_layer_idx": Only((False,), "attention scores are divided by the root of head_dim"),
    "reorder_and_upcast_attn": Only((False,), "attention scores are divided by the root of head_dim"),
    "use_qk_norm": Only((False,), "queries and keys would be normalised"),
    "qk_layernorm": Only((False,), "queries and keys would be normalised"),
    "parallel_attn": Only((False,), "attention and feed-forward follow each other"),
    **OF_CAPACITY,
}
