"""Turns a run's config into what the formulas take."""

from dataclasses import asdict

import numpy as np

from megatron_dpop.config import Config
from megatron_dpop.config.layout import ModelLayout
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.workload import ExampleCost, Workload
from megatron_dpop.rows.row import Ints
from megatron_dpop.rows.shapes import example_shapes

SINGLE_COMPLETION = ("sft", "kto")  # losses


def choice_of(config: Config, *, data: int = 1) -> LayoutChoice:
    """The config's layout on `data` replicas of the model."""
    return LayoutChoice(
        **asdict(ModelLayout.of(config.parallel)),
        data=data,
        params=config.precision.params,
        fp8=config.precision.fp8 is not None,
        fp8_blockwise=config.precision.fp8 == "blockwise",
        attention_kernel=config.kernels.attention,
        fp8_params=config.precision.fp8_params,
        recompute=config.train.recompute,
        distributed_optimizer=config.optimizer.distributed,
        optimizer_state=config.optimizer.state,
        offload_optimizer=config.optimizer.offload,
        lora=config.lora,
        freeze_router=config.experts.freeze_router,
        overlap=config.parallel.overlap is not False,
    )


def workload_of(config: Config, prompt_tokens: Ints, completion_tokens: Ints, common_prefix_tokens: Ints) -> Workload:
    """The config's step over examples of these lengths: [examples], [examples, completions] and [examples]."""

    def cost(*, share_prefix: bool) -> ExampleCost:
        shapes = example_shapes(prompt_tokens, completion_tokens, common_prefix_tokens, share_prefix=share_prefix)
        return ExampleCost.of(shapes)

    return Workload(
        examples=config.train.global_batch_pairs,
        capacity_tokens=config.data.row_tokens,
        packed=cost(share_prefix=config.data.share_prefix),
        unshared=cost(share_prefix=False),
    )


def pair_workload(config: Config, *, prompt: int, completion: int, common: int) -> Workload:
    """The same where every example is a pair of two completions of one length, `common` tokens of them shared; or, for
    a loss of single completions, one of them."""
    completions = [completion] * (1 if config.loss.name in SINGLE_COMPLETION else 2)
    return workload_of(config, np.array([prompt]), np.array([completions]), np.array([common]))
