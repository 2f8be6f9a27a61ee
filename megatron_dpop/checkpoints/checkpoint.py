"""Weights and optimizer state in Megatron's torch_dist format, saved whole and resumed exactly.

With LoRA a checkpoint holds the adapters and their optimizer state alone: the frozen base is what it was trained from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.models.gpt import GPTModel

from dpop_base.architectures import Architecture
from dpop_base.checkpoint_names import HEAD_COLUMNS, HEAD_ROWS, iteration_name
from dpop_base.errors import UserError, first_line
from megatron_dpop.checkpoints import restricted
from megatron_dpop.engine.engine import Engine
from megatron_dpop.engine.optimizer import by_part, loading, without_classes
from megatron_dpop.models.lora import is_adapter

# Content metadata of what we write: optimizer state in the parameters' own shapes loads at any layout.
CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,  # experts' optimizer is one of its own at some layouts only
}


def load_model(modules: Sequence[GPTModel], architecture: Architecture, folder: Path) -> dict[str, Any]:
    """Fills a model's chunks from a torch_dist folder, at any layout. Raises UserError where that cannot be read.

    Returns what was read, by chunk: of weights that are kept in FP8, before they were rounded.
    """
    state = _loadable(_model_state(modules, adapters=False))
    _allow_other_padding(state, architecture, folder)
    _read_unrounded(state)
    loaded = _load(state, folder, common=False)
    _fill(modules, loaded)
    return loaded


def load_weights(engine: Engine, folder: Path) -> None:
    """Fills the engine's model, and its optimizer's own copy of it. A frozen base is not read again."""
    if engine.adapters and engine.frozen_from == folder:
        return
    loaded = load_model(engine.modules, engine.architecture, folder)
    engine.frozen_from = folder
    unrounded = loaded if engine.config.fp8_param and not engine.adapters else None
    engine.optimizer.reload_model_params(state_dict=unrounded)


def resume(engine: Engine, folder: Path, iteration: int) -> None:
    """Restores exactly what `megatron_dpop.checkpoints.saving` saved; at another layout too."""
    with loading(engine.optimizer):
        saved = folder / iteration_name(iteration)
        asked = run_state(engine, iteration, loaded_from=saved)
        loaded = _load(asked, saved, common=True)
        _fill(engine.modules, loaded)
        engine.optimizer.load_state_dict(by_part(asked["optimizer"], loaded["optimizer"]))
    engine.scheduler.step(increment=iteration)


def run_state(engine: Engine, iteration: int, *, loaded_from: Path | None = None) -> dict[str, Any]:
    """All that a resumed run needs, as sharded tensors of any layout: data order follows from the iteration."""
    engine.finish_parameter_gather()
    model = _model_state(engine.modules, adapters=bool(engine.adapters))
    if loaded_from is not None:
        model = _loadable(model)
        _allow_other_padding(model, engine.architecture, loaded_from)
    optimizer = engine.optimizer.sharded_state_dict(model, is_loading=loaded_from is not None, metadata=dict(CONTENT))
    optimizer = without_classes(optimizer)
    # Rows beyond the true vocabulary may hold anything: its size tells a converter that they are padding.
    vocabulary = {"vocab_size": engine.architecture.vocab_size}
    return {**model, **vocabulary, "optimizer": optimizer, "iteration": iteration, "checkpoint_version": 3.0}


def _model_state(modules: Sequence[GPTModel], *, adapters: bool) -> dict[str, dict[str, Any]]:
    """Returns the chunks' sharded tensors, the adapters' or all others, by Megatron's names for chunks."""
    # Megatron adds this process's groups to the metadata that it is given.
    states = [module.sharded_state_dict(metadata=dict(CONTENT)) for module in modules]
    return {
        chunk: {name: value for name, value in state.items() if is_adapter(name) is adapters}
        for chunk, state in zip(_chunk_names(modules), states, strict=True)
    }


def _loadable(state: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Drops Transformer Engine's extra states: delayed FP8's are pickles, which we do not run; the rest are empty."""
    return {
        chunk: {name: value for name, value in entries.items() if not name.endswith("_extra_state")}
        for chunk, entries in state.items()
    }


def _read_unrounded(state: dict[str, dict[str, Any]]) -> None:
    """Gives weights that are kept in FP8 a place of full precision to be read into, for the optimizer's copy."""
    for entry in (entry for chunk in state.values() for entry in chunk.values()):
        if isinstance(entry, ShardedTensor | ShardedTensorFactory) and is_float8tensor(entry.data):
            entry.data = torch.empty(entry.data.shape, dtype=entry.data.dtype, device=entry.data.device)


def _chunk_names(modules: Sequence[GPTModel]) -> list[str]:
    return ["model"] if len(modules) == 1 else [f"model{at}" for at in range(len(modules))]


def _fill(modules: Sequence[GPTModel], loaded: dict[str, Any]) -> None:
    """Fills the chunks. Nothing that was asked for is missing: loading would have failed. The rest keeps its values."""
    for chunk, module in zip(_chunk_names(modules), modules, strict=True):
        unexpected = module.load_state_dict(loaded[chunk], strict=False).unexpected_keys
        assert not unexpected, unexpected


def _allow_other_padding(state: dict[str, dict[str, Any]], architecture: Architecture, folder: Path) -> None:
    """Lets heads that `parallel.pad_heads` added be absent from the checkpoint, or from the model.

    They stand after the true ones, so that Megatron's handling of a padded vocabulary serves: what the checkpoint
    lacks comes back zero, what the model lacks is left out. Any other difference of shape stays an error.
    """
    group_rows = architecture.head_dim * (architecture.num_attention_heads // architecture.num_key_value_heads + 2)
    stored = restricted.tensors_metadata(folder)
    for tensor in (tensor for chunk in state.values() for tensor in chunk.values()):
        if not isinstance(tensor, ShardedTensor) or not tensor.key.endswith(HEAD_ROWS + HEAD_COLUMNS):
            continue
        in_rows = tensor.key.endswith(HEAD_ROWS)
        axis = -2 if in_rows and not tensor.key.endswith(".bias") else -1
        per_head = group_rows if in_rows else group_rows - 2 * architecture.head_dim
        if tensor.key in stored:
            size = stored[tensor.key].global_shape[axis]
            tensor.allow_shape_mismatch = size % per_head == 0 and size // per_head >= architecture.num_key_value_heads


def _load(state: dict[str, Any], folder: Path, *, common: bool) -> dict[str, Any]:
    """Raises UserError on all ranks where one of them finds damage in its own part."""
    loaded: dict[str, Any] = {}
    problem = None
    try:
        loaded = restricted.load(state, folder, common=common)
    except UserError as error:
        problem = str(error)
    except Exception as error:  # a damaged file raises nearly anything
        problem = f"{folder}: cannot load the checkpoint ({first_line(error)}); convert or copy it again"
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if found := next(filter(None, problems), None):
        raise UserError(found)
    return loaded
