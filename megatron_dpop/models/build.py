"""Builds the `GPTModel` that reproduces an `Architecture` at a layout."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig

from dpop_base.architectures import Architecture
from dpop_base.architectures.architecture import Experts
from megatron_dpop.config.layout import ModelLayout, padded_key_value_heads, padded_vocabulary
from megatron_dpop.models.experts import follow_rows
from megatron_dpop.models.rotary import RowRotaryEmbedding
from megatron_dpop.models.spec import block_spec
from megatron_dpop.runtime.devices import on_gpu


@dataclass
class RowTransformerConfig(TransformerConfig):
    """Megatron-Core's config, and what our own parts of a layer take from it."""

    fused_kernels: bool = False  # Triton's, for tensors on a GPU
    attention_kernel: Literal["flash", "cudnn"] = "flash"  # on a GPU
    fused_weight_gradients: bool = False  # of Transformer Engine's linears, added to fp32 by the product itself
    balance_loss: float = 0.0  # weights of the routers' own losses
    z_loss: float = 0.0


def transformer_config(
    architecture: Architecture, layout: ModelLayout, *, params_dtype: torch.dtype, **options: Any
) -> RowTransformerConfig:
    """Megatron-Core's config for this model, with dropout off and the loss averaged by us over pairs.

    `options` are further keys of it.
    """
    if architecture.experts is not None:
        options = {**expert_options(architecture, architecture.experts, layout), **options}
    kv_heads = padded_key_value_heads(architecture, layout)
    group = architecture.num_attention_heads // architecture.num_key_value_heads
    return RowTransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=kv_heads * group,
        num_query_groups=kv_heads,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_zero_centered_gamma=architecture.zero_centered_norms,
        layernorm_epsilon=architecture.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu if architecture.activation == "silu" else F.gelu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        perform_initialization=False,  # weights are always loaded
        params_dtype=params_dtype,
        pipeline_dtype=params_dtype,
        autocast_dtype=params_dtype,
        bf16=params_dtype is torch.bfloat16,
        fp16=params_dtype is torch.float16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        # Between two stages, a batch that sends both ways would mix activations with gradients.
        overlap_p2p_comm=layout.virtual_pipeline is not None,
        batch_p2p_comm=layout.virtual_pipeline is None,
        num_layers_in_first_pipeline_stage=layout.first_stage_layers,
        num_layers_in_last_pipeline_stage=layout.last_stage_layers,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence and layout.tensor > 1,
        tp_comm_overlap=layout.overlap_tensor,
        # The loss function divides by the step's number of examples, and so nobody else may.
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        use_te_activation_func=True,  # so is called what the spec names: our own, with or without Transformer Engine
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **options,
    )


def expert_options(architecture: Architecture, experts: Experts, layout: ModelLayout) -> dict[str, Any]:
    """Megatron-Core's keys for a mixture of experts, on GPUs by Transformer Engine's grouped products.

    No token is dropped, however many an expert gets, and no loss but the pairs' moves the router.
    """
    return {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_topk": experts.per_token,
        "moe_router_pre_softmax": not experts.shares_sum_to_one,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_layer_freq": architecture.expert_pattern or 1,
        "moe_shared_expert_intermediate_size": experts.shared_ffn_hidden_size,
        "moe_shared_expert_gate": experts.shared_ffn_hidden_size is not None,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": on_gpu(),
        "moe_permute_fusion": on_gpu(),
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
    }


def build_model(
    architecture: Architecture,
    config: RowTransformerConfig,
    groups: ProcessGroupCollection,
    *,
    transformer_engine: bool,
) -> list[GPTModel]:
    """The parts of the model that this rank holds, one or with interleaved pipelining several; weights not yet set."""
    chunks = config.virtual_pipeline_model_parallel_size or 1
    return [
        _build_chunk(
            architecture,
            config,
            groups,
            transformer_engine=transformer_engine,
            vp_stage=chunk if chunks > 1 else None,
        )
        for chunk in range(chunks)
    ]


def _build_chunk(
    architecture: Architecture,
    config: RowTransformerConfig,
    groups: ProcessGroupCollection,
    *,
    transformer_engine: bool,
    vp_stage: int | None,
) -> GPTModel:
    tensor = config.tensor_model_parallel_size
    model = GPTModel(
        config,
        block_spec(config, architecture, transformer_engine=transformer_engine, vp_stage=vp_stage),
        vocab_size=padded_vocabulary(architecture.vocab_size, tensor),
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        vp_stage=vp_stage,
        position_embedding_type="rope",
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        pg_collection=groups,
    )
    model.rotary_pos_emb = RowRotaryEmbedding(architecture)
    follow_rows(model)
    if model.pre_process and architecture.embedding_multiplier != 1.0:
        model.embedding.register_forward_hook(partial(_scaled, by=architecture.embedding_multiplier))
    if model.post_process and architecture.logits_divisor != 1.0:
        # The output layer is linear: dividing what goes in divides the logits, wherever they are computed.
        model.decoder.final_layernorm.register_forward_hook(partial(_multiplied, by=1 / architecture.logits_divisor))
    return model


def _scaled(module: torch.nn.Module, inputs: object, output: torch.Tensor, *, by: float) -> torch.Tensor:
    """The factor is rounded to the dtype as transformers rounds it: Gemma was trained with sqrt(3072) as 55.5."""
    return output * torch.tensor(by, dtype=output.dtype)


def _multiplied(module: torch.nn.Module, inputs: object, output: torch.Tensor, *, by: float) -> torch.Tensor:
    return output * by
