"""Megatron's distributed AdamW and learning-rate schedule."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import MegatronModule

from megatron_dpop.config import Config
from megatron_dpop.config.lengths import decay_steps, settle_lengths

# Megatron computes the gradient's norm only where it clips.
NO_CLIPPING = 1e38

# What Megatron-Core calls the optimizers that `optimizer.name` names.
MEGATRON_OPTIONS: dict[str, dict[str, Any]] = {"adamw": {"optimizer": "adam", "decoupled_weight_decay": True}}
MEGATRON_STYLES = {"wsd": "WSD"}

MOMENTS_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_optimizer(config: Config, chunks: Sequence[MegatronModule], dtype: torch.dtype) -> MegatronOptimizer:
    """AdamW with fp32 master weights, by default sharded over data-parallel ranks; norms and biases are not decayed."""
    options = config.optimizer
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            **MEGATRON_OPTIONS[options.name],
            lr=options.lr,
            min_lr=options.min_lr,
            weight_decay=options.weight_decay,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            adam_eps=options.eps,
            clip_grad=options.clip_norm or NO_CLIPPING,
            bf16=dtype is torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=options.distributed,
            fp8_recipe=config.precision.fp8,
            optimizer_cpu_offload=options.offload,
            optimizer_offload_fraction=1.0 if options.offload else 0.0,
            overlap_cpu_optimizer_d2h_h2d=options.offload,
            # On the CPU too: only so does it take the weights that are loaded after it was made.
            use_precision_aware_optimizer=options.state == "bf16" or options.offload,
            store_param_remainders=False,  # halves of master weights, which Megatron-Core saves but cannot load
            exp_avg_dtype=MOMENTS_DTYPE[options.state],
            exp_avg_sq_dtype=MOMENTS_DTYPE[options.state],
        ),
        list(chunks),
    )
    for stand_in in _torch_optimizers(optimizer):
        for group in stand_in.optimizer.param_groups:
            group["fused"] = True  # one pass over weights, moments and gradients in place of ten
    return optimizer


def _torch_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    """The parts whose AdamW is torch's, which stands in for the fused one of GPUs."""
    return [
        part
        for part in getattr(optimizer, "chained_optimizers", [optimizer])
        if isinstance(part.optimizer, torch.optim.AdamW)
    ]


def build_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Linear warm-up from 0, then decay to `min_lr` at the last step; none of it, or only at the end, as asked."""
    config = settle_lengths(config)  # which leaves a run's as it is: settled once its examples were counted
    options = config.optimizer
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=options.lr,
        min_lr=options.min_lr,
        lr_warmup_steps=options.warmup_steps,
        lr_decay_steps=config.train.steps,
        lr_decay_style=MEGATRON_STYLES.get(options.schedule, options.schedule),
        wsd_decay_steps=decay_steps(config),
        lr_wsd_decay_style="linear",
        start_wd=options.weight_decay,
        end_wd=options.weight_decay,
        wd_incr_steps=config.train.steps,
        wd_incr_style="constant",
    )


@contextmanager
def loading(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Within it, Megatron-Core 0.19 can load torch's AdamW, which stands in for the fused one on the CPU.

    Megatron asks it for a step count, which it has only from its first step on; while it fills in the saved state it
    takes that step count for one more tensor that the checkpoint should hold; and it gives all parameters one step
    count to share, which each of them would then advance.
    """
    parts = _torch_optimizers(optimizer)
    for part in parts:
        _allocate_state(part.optimizer)
        if isinstance(part, DistributedOptimizer):
            _keep_step_count(part)
    yield
    for part in parts:
        for state in part.optimizer.state.values():
            state["step"] = state["step"].clone()


def _allocate_state(adam: torch.optim.AdamW) -> None:
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _keep_step_count(distributed: DistributedOptimizer) -> None:
    fill = distributed._set_main_param_and_optimizer_states

    def fill_with_step(model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, order = distributed.model_param_group_index_map[model_param]
        parameter = distributed.optimizer.param_groups[group]["params"][order]
        fill(model_param, {"step": distributed.optimizer.state[parameter]["step"], **tensors})

    distributed._set_main_param_and_optimizer_states = fill_with_step


def without_classes(state: dict[Any, Any]) -> dict[Any, Any]:
    """Returns an optimizer's state with the classes taken out of its parameter groups.

    Megatron-Core's offloading optimizer keeps the classes of its parts there and reads them from elsewhere; a
    checkpoint that names a class is refused by `megatron_dpop.checkpoints.restricted`.
    """
    kept = {key: without_classes(value) if isinstance(value, dict) else value for key, value in state.items()}
    if isinstance(groups := kept.get("param_groups"), list):
        kept["param_groups"] = [
            {key: value for key, value in group.items() if not isinstance(value, type)} for group in groups
        ]
    return kept


def by_part(own: dict[Any, Any], loaded: dict[Any, Any]) -> dict[Any, Any]:
    """What was loaded, in the parts that this layout's optimizer has.

    Megatron-Core gives experts an optimizer of their own where ranks hold different ones, and numbers the two;
    elsewhere there is one, without a number. `own` is the state that was asked for: tensors come back at its places,
    but parameter groups at those of the run that saved them. Of these the step count alone is a run's; the rest is
    config.
    """
    parts = [key for key in own if isinstance(key, int)]
    if parts == [key for key in loaded if isinstance(key, int)] and ("optimizer" in own) == ("optimizer" in loaded):
        return loaded
    stored = [loaded, *(part for part in loaded.values() if isinstance(part, dict))]
    step = next(part["optimizer"]["param_groups"][0]["step"] for part in stored if "optimizer" in part)

    def settled(own_part: dict[Any, Any], loaded_part: dict[Any, Any]) -> dict[Any, Any]:
        groups = [{**group, "step": step} for group in own_part["optimizer"]["param_groups"]]
        optimizer = {**own_part["optimizer"], "param_groups": groups}
        return {**own_part, "optimizer": optimizer, "param_state": loaded_part["param_state"]}

    return {key: settled(own[key], loaded[key]) for key in parts} if parts else settled(own, loaded)
