"""Step 0's loss and gradient at a layout, and the ranks' shards put together under one rank's names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from tests.distributed import leave_model_parallel

Arrays = dict[str, np.ndarray]
EXPERT = ".local_experts."


@dataclass(frozen=True)
class Part:
    """One rank's share."""

    tensor_rank: int
    expert_tensor_rank: int
    stage: int
    replica: int  # data- and context-parallel rank
    loss: float
    gradients: Arrays  # fp32, reduced over replicas, by parameter name with the layer's place in the whole model
    values: dict[str, float]  # every metric of the loss
    logps: np.ndarray | None = None  # fp32 [examples, completions], the same on all ranks


def parts_here(runs: list[tuple[dict, str | None]]) -> list[Part]:
    """Of each config, with its table of reference log-probabilities."""
    return [_part(tree, table) for tree, table in runs]


def _part(tree: dict, table: str | None) -> Part:
    """`table`: .npy file of reference log-probabilities; None takes the model's own, at which DPOP has a kink."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)
    from megatron_dpop.engine.batches import StepData
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.reference import compute_reference
    from megatron_dpop.training.resuming import begin, load_policy
    from megatron_dpop.training.run import build_run

    run = build_run(config, read_inputs(config, progress=False), device)
    begin(run)
    load_policy(run)
    engine, source = run.engine, run.train
    logps = compute_reference(engine, source, 9, lambda _: None)
    data = StepData(source, np.load(table) if table else logps)
    part = replace(_step_part(engine, data, run.inputs.loss), logps=logps)
    leave_model_parallel()
    return part


def losses_here(groups: list[tuple[dict, list[dict]]]) -> list[list[Part]]:
    """Of each config, which has a reference model of its own, with each of these `loss` sections in place of its own.

    They take the same kind of examples and share the engine, the rows and the reference's log-probabilities.
    """
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.losses.registry import make_loss
    from megatron_dpop.runtime import processes

    found = []
    for tree, sections in groups:
        config = config_from_dict(tree, origin="test")
        device = processes.initialize(config.parallel, seed=0)
        from megatron_dpop.training.inputs import read_inputs
        from megatron_dpop.training.reference_cache import step_data
        from megatron_dpop.training.resuming import begin, load_policy
        from megatron_dpop.training.run import build_run

        run = build_run(config, read_inputs(config, progress=False), device)
        begin(run)
        data, _ = step_data(run)
        load_policy(run)
        found.append([_step_part(run.engine, data, make_loss(section)) for section in sections])
        leave_model_parallel()
    return found


def _step_part(engine: Any, data: Any, loss: Any) -> Part:
    """Step 0's."""
    from megatron.core import parallel_state

    from megatron_dpop.engine.forward import run_rows
    from megatron_dpop.training.kl import step_kl
    from megatron_dpop.training.metrics import StepMetrics

    engine.zero_gradients()
    metrics = StepMetrics(engine, loss, data.source.dataset)
    row_loss = partial(metrics.row_loss, kl=step_kl(data, 0, when="step 0"), progress=0.4)
    examples = len(data.source.examples_of_step(0))
    values = metrics.reduce(run_rows(engine, data.rows(0), row_loss, forward_only=False, examples=examples))
    for chunk in engine.chunks:
        gather_reduced(chunk)
    gradients = {
        in_whole_model(name, module): parameter.main_grad.numpy().copy()
        for module in engine.modules
        for name, parameter in module.named_parameters()
    }
    return Part(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        expert_tensor_rank=parallel_state.get_expert_tensor_parallel_rank(),
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        replica=parallel_state.get_data_parallel_rank(with_context_parallel=True),
        loss=values["loss"],
        values=values,
        gradients=gradients,
    )


def gather_reduced(chunk: Any) -> None:
    """Under the distributed optimizer each replica's buffer is reduced in its own shard only: completes it."""
    import torch.distributed as dist
    from megatron.core.distributed.param_and_grad_buffer import shard_buffer

    if not chunk.ddp_config.use_distributed_optimizer:
        return
    for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
        replicas = group.intra_distributed_optimizer_instance_group
        for bucket in group.buckets:
            shard = shard_buffer(bucket.grad_data, replicas.size())[replicas.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, shard, group=replicas)


def in_whole_model(name: str, module: Any) -> str:
    """Layers are counted within a chunk, and experts on a rank. Megatron numbers layers over the model, from 1."""
    from megatron.core import parallel_state

    def whole(match: re.Match[str]) -> str:
        layer = module.decoder.layers[int(match[1])]
        number = f"layers.{layer.layer_number - 1}{match[2]}"
        if match[3] is None:
            return number
        first = parallel_state.get_expert_model_parallel_rank() * len(layer.mlp.experts.local_experts)
        return f"{number}{EXPERT}{first + int(match[3])}"

    return re.sub(rf"layers\.(\d+)(\.mlp\.experts|)(?:{re.escape(EXPERT)}(\d+))?", whole, name)


def gather(parts: Sequence[Part], *, vocab_size: int, tied: bool) -> Arrays:
    """Whole tensors from every rank's shards; what ranks hold several times must agree."""
    stages = 1 + max(part.stage for part in parts)
    whole: Arrays = {}
    replicas = 1 + max(part.replica for part in parts)
    for stage, replica in product(range(stages), range(replicas)):
        here = [part for part in parts if part.stage == stage and part.replica == replica]
        ranks = sorted(here, key=lambda part: part.tensor_rank)
        for name in ranks[0].gradients:
            if EXPERT in name:
                continue
            joined = _join(name, [part.gradients[name] for part in ranks], vocab_size)
            # The last stage's copy of a tied embedding is called output_layer.
            full_name = name.replace("output_layer", "embedding.word_embeddings") if tied else name
            if full_name in whole:
                np.testing.assert_array_equal(whole[full_name], joined, err_msg=full_name)
            whole[full_name] = joined
    return whole | _gather_experts(parts, vocab_size)


def _gather_experts(parts: Sequence[Part], vocab_size: int) -> Arrays:
    """Ranks hold other experts than others, and share each along another axis than the other weights."""
    whole: Arrays = {}
    for name in sorted({name for part in parts for name in part.gradients if EXPERT in name}):
        shards: dict[int, list[np.ndarray]] = {}
        for part in parts:
            if name in part.gradients:
                shards.setdefault(part.expert_tensor_rank, []).append(part.gradients[name])
        for first, *others in shards.values():
            for other in others:
                np.testing.assert_array_equal(first, other, err_msg=name)
        whole[name] = _join(name, [shards[rank][0] for rank in sorted(shards)], vocab_size)
    return whole


def _join(name: str, shards: list[np.ndarray], vocab_size: int) -> np.ndarray:
    if "word_embeddings" in name or "output_layer" in name:
        return np.concatenate(shards)[:vocab_size]
    if "linear_fc1.weight" in name:
        gates, ups = zip(*(np.split(shard, 2) for shard in shards), strict=True)
        return np.concatenate((*gates, *ups))
    if "linear_qkv.weight" in name or "linear_qkv.bias" in name:
        return np.concatenate(shards)
    if "linear_proj.weight" in name or "linear_fc2.weight" in name:
        return np.concatenate(shards, axis=1)
    for shard in shards[1:]:  # norms
        np.testing.assert_array_equal(shard, shards[0], err_msg=name)
    return shards[0]
