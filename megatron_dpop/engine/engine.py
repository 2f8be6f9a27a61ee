"""The engine: model, DDP, optimizer and schedule at a layout, all Megatron-Core's own; or the model alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module, MegatronModule

from dpop_base.architectures import Architecture
from megatron_dpop.config import Config
from megatron_dpop.config.expert_layout import adapts_experts
from megatron_dpop.config.layout import ModelLayout
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.engine.optimizer import build_optimizer, build_scheduler
from megatron_dpop.models.build import build_model, transformer_config
from megatron_dpop.models.experts import freeze_routers
from megatron_dpop.models.lora import Adapter, add_adapters
from megatron_dpop.runtime.devices import on_gpu
from megatron_dpop.runtime.tensor_overlap import open_buffers

# Micro-batches whose largest values set the scale of delayed FP8: long enough to bridge one of small ones.
DELAYED_HISTORY_STEPS = 1024

PARAMS_DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(kw_only=True)
class ModelEngine:
    """What one rank holds of a model, to run it forward. With interleaved pipelining it holds several chunks."""

    layout: ModelLayout
    config: TransformerConfig
    architecture: Architecture
    groups: ProcessGroupCollection
    device: torch.device
    modules: list[GPTModel]  # bare, for weights
    chunks: list[MegatronModule]  # wrapped, for the schedules
    adapters: tuple[Adapter, ...] = ()  # LoRA's, where there are any: all that is trained
    equal_rows: bool = False  # every row is as long as a row can be

    @property
    def data_parallel_rank(self) -> int:
        return int(self.groups.dp.rank())

    @property
    def data_parallel_size(self) -> int:
        return int(self.groups.dp.size())

    @property
    def context_parallel_rank(self) -> int:
        return int(self.groups.cp.rank())

    @property
    def context_parallel_size(self) -> int:
        return int(self.groups.cp.size())

    @property
    def micro_batches_multiple(self) -> int:
        """An interleaved pipeline takes its micro-batches in groups of the number of stages."""
        return self.layout.pipeline if len(self.chunks) > 1 else 1

    @property
    def on_last_stage(self) -> bool:
        return bool(parallel_state.is_pipeline_last_stage())

    @property
    def is_metrics_rank(self) -> bool:
        """True on the one rank of each data-parallel group whose results are counted."""
        return self.on_last_stage and self.groups.tp.rank() == 0 and self.context_parallel_rank == 0


@dataclass(kw_only=True)
class Engine(ModelEngine):
    """What one rank holds of a run."""

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    lora: LoraConfig | None = None
    frozen_from: Path | None = None  # with adapters: where the weights of their base were read

    def zero_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def finish_parameter_gather(self) -> None:
        """Waits for weights that are read outside the model's forward pass, which waits for them by itself."""
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)


def build_engine(config: Config, architecture: Architecture, device: torch.device) -> Engine:
    """Builds everything with unset weights; `megatron_dpop.checkpoints.checkpoint` fills them."""
    model = build_model_engine(config, architecture, device)
    overlap = on_gpu() if config.parallel.overlap is None else config.parallel.overlap
    model_config = model.config
    chunks = [
        _data_parallel(chunk, config, model_config, overlap=overlap, is_first=at == 0)
        for at, chunk in enumerate(model.chunks)
    ]
    for chunk, module in zip(chunks, model.modules, strict=True):
        if module.post_process and chunk.ddp_config.overlap_param_gather:
            _await_output_weight(chunk, module)
    optimizer = build_optimizer(config, chunks, PARAMS_DTYPE[config.precision.params])
    model_config.finalize_model_grads_func = _finalize_gradients
    if overlap:
        no_sync = [chunk.no_sync for chunk in chunks]
        model_config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return Engine(
        layout=model.layout,
        config=model_config,
        architecture=architecture,
        groups=model.groups,
        device=device,
        modules=model.modules,
        chunks=chunks,
        optimizer=optimizer,
        scheduler=build_scheduler(config, optimizer),
        lora=config.lora,
        adapters=model.adapters,
        equal_rows=model.equal_rows,
    )


def _finalize_gradients(chunks: list[Any], count: torch.Tensor | None = None, **options: Any) -> None:
    """Megatron-Core's, without its pass over all gradients that divides them by a count: the losses were divided."""
    finalize_model_grads(chunks, None, **options)


def build_model_engine(config: Config, architecture: Architecture, device: torch.device) -> ModelEngine:
    """Builds the model alone, with unset weights: what a pass without gradients needs."""
    if torch.are_deterministic_algorithms_enabled() != config.train.deterministic:
        # It imports torch's compiler, which takes a second: not where nothing changes.
        torch.use_deterministic_algorithms(config.train.deterministic)
    dtype = PARAMS_DTYPE[config.precision.params]
    layout = ModelLayout.of(config.parallel)
    model_config = transformer_config(architecture, layout, params_dtype=dtype, **model_options(config))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if layout.overlap_tensor:
        open_buffers(
            tokens=config.data.row_tokens // layout.context,
            hidden=architecture.hidden_size,
            tensor=layout.tensor,
            fp8=config.precision.fp8 is not None,
            bf16=config.precision.fp8 is None or config.precision.bf16_end_layers > 0,
        )
    modules = build_model(architecture, model_config, groups, transformer_engine=on_gpu())
    adapters: list[Adapter] = []
    for module in modules:
        module.to(device)
        if config.lora is not None:
            adapters += add_adapters(module, config.lora, architecture, groups, seed=config.train.seed)
        if config.experts.freeze_router:
            freeze_routers(module)
    return ModelEngine(
        layout=layout,
        config=model_config,
        architecture=architecture,
        groups=groups,
        device=device,
        modules=modules,
        chunks=[module if dtype is torch.float32 else Float16Module(model_config, module) for module in modules],
        adapters=tuple(adapters),
        # Buffers of one size: of communication, and in the host's memory, where one is kept for every size ever seen.
        equal_rows=layout.overlap_tensor or config.train.offload_activations,
    )


def _data_parallel(
    module: MegatronModule, config: Config, model_config: TransformerConfig, *, overlap: bool, is_first: bool
) -> DistributedDataParallel:
    distributed = config.optimizer.distributed
    return DistributedDataParallel(
        model_config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=distributed,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap and distributed,
            fp8_param_gather=config.precision.fp8_params,
        ),
        module,
        # Later chunks finish their backward pass early enough to hide their reduction whole.
        disable_bucketing=not is_first,
    )


def _await_output_weight(chunk: DistributedDataParallel, module: GPTModel) -> None:
    """Lets the output layer's weight be gathered before it is used.

    Megatron-Core waits for a weight's gather where its module is called; ours reads the weight and calls no module. It
    may have a gather of its own, which begins with that of the norm before it.
    """
    tied = module.share_embeddings_and_output_weights
    weight = module.shared_embedding_or_output_weight() if tied else module.output_layer.weight
    if (group := chunk.param_to_bucket_group.get(weight)) is not None:

        def wait(*_: Any) -> None:
            group.finish_param_sync()

        module.decoder.final_layernorm.register_forward_pre_hook(wait)


def model_options(config: Config) -> dict[str, Any]:
    """What a run's config says of the model beyond its shape and layout, in Megatron-Core's terms."""
    options: dict[str, Any] = {
        "deterministic_mode": config.train.deterministic,
        "fused_kernels": config.kernels.fused,
        "attention_kernel": config.kernels.attention,
        "fused_weight_gradients": config.kernels.fused and config.lora is None,
        "balance_loss": config.experts.balance_loss,
        "z_loss": config.experts.z_loss,
    }
    if adapts_experts(config):
        options["moe_grouped_gemm"] = False  # an adapter adds to the linear of one expert
    if config.train.recompute == "full":
        options |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif config.train.recompute == "selective":
        options |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    if config.train.offload_activations:
        options |= {
            "fine_grained_activation_offloading": True,
            # Not core_attn: what it keeps differs in size from row to row, with the trees.
            "offload_modules": ["attn_norm", "qkv_linear", "mlp_norm"],
        }
    precision = config.precision
    if precision.fp8 is not None:
        options |= {
            # Wide range for gradients, more precision for what goes forward.
            "fp8": "hybrid",
            "fp8_recipe": precision.fp8,
            "fp8_param": precision.fp8_params,
            "fp8_amax_history_len": DELAYED_HISTORY_STEPS if precision.fp8 == "delayed" else 1,
            "fp8_amax_compute_algo": "max" if precision.fp8 == "delayed" else "most_recent",
            "first_last_layers_bf16": precision.bf16_end_layers > 0,
            "num_layers_at_start_in_bf16": precision.bf16_end_layers,
            "num_layers_at_end_in_bf16": precision.bf16_end_layers,
        }
    return options
