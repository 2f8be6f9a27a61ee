"""LoRA (arXiv 2106.09685) on the linear layers of a built model: y = W x + alpha / rank * B A x, with W frozen.

A linear that is cut by outputs (column-parallel) has A whole on every tensor-parallel rank and B cut as W is; one that
is cut by inputs (row-parallel) has A cut as W is and B whole. So the ranks exchange what lies between A and B, `rank`
numbers a token, and a token is never gathered for an adapter's sake. Each expert has adapters of its own; its ranks
exchange nothing, since the layer gathers tokens before experts and sums what comes out of them.

An adapter is a module beside its linear (`linear_qkv_adapter`), and adds to it by a forward hook: the names and the
checkpoint of the base stay as they are without adapters.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
    model_parallel_cuda_manual_seed,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.distributed import ProcessGroup

from checkpoint_convert.rules.adapters import ADAPTER, adapter_tensors
from checkpoint_convert.rules.families import RULES
from dpop_base.architectures import Architecture
from megatron_dpop.config.schema import LoraConfig


class Adapter(torch.nn.Module):
    """What is added to one linear: `lora_A` [rank, inputs], `lora_B` [outputs, rank], each whole or this rank's cut."""

    cut: tuple[str, int]  # the parameter that is cut over tensor-parallel ranks, and along which dimension
    shares_tokens = True  # under sequence parallelism the ranks share the tokens outside the linear

    def __init__(self, weight: Tensor, lora: LoraConfig, config: TransformerConfig, group: ProcessGroup) -> None:
        """`weight`: this rank's cut of the linear's, [outputs, inputs]; `group`: the ranks over which it is cut."""
        super().__init__()
        outputs, inputs = weight.shape
        options: dict[str, Any] = {"dtype": config.params_dtype, "device": weight.device}
        self.lora_A = torch.nn.Parameter(torch.empty(lora.rank, inputs, **options))
        self.lora_B = torch.nn.Parameter(torch.zeros(outputs, lora.rank, **options))
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout
        self.group = group
        self.sequence_parallel = config.sequence_parallel and self.shares_tokens
        self.is_active = True
        for name, parameter in self.named_parameters():
            is_cut = name == self.cut[0]
            set_tensor_model_parallel_attributes(parameter, is_cut, self.cut[1] if is_cut else -1, 1)
            # Under sequence parallelism a whole parameter has seen this rank's tokens only: Megatron sums over ranks.
            parameter.sequence_parallel = self.sequence_parallel and not is_cut  # type: ignore[attr-defined]
            # Of experts: over which ranks its gradient is summed.
            parameter.allreduce = getattr(weight, "allreduce", True)  # type: ignore[attr-defined]

    def forward(self, inputs: Tensor) -> Tensor:
        """What the linear multiplies to what is added to its output, in the linear's own cuts."""
        if self.dropout and self.training:
            inputs = self._drop(inputs)
        lora_a, lora_b = self._matrices()
        return F.linear(self._exchange(F.linear(inputs, lora_a) * self.scale), lora_b)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B

    def _exchange(self, low: Tensor) -> Tensor:
        """Between A and B, [tokens, 1, rank]: from the cut in which A gives it to that in which B needs it."""
        raise NotImplementedError

    def _drop(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            dict([self.cut]),
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class ColumnParallelAdapter(Adapter):
    """Adapts a linear cut by outputs; its inputs are whole, or cut by tokens under sequence parallelism."""

    cut = ("lora_B", 0)

    def _exchange(self, low: Tensor) -> Tensor:
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(low, group=self.group)
        return copy_to_tensor_model_parallel_region(low, group=self.group)

    def _drop(self, inputs: Tensor) -> Tensor:
        if self.sequence_parallel:
            with get_cuda_rng_tracker().fork():  # each rank has tokens of its own
                return F.dropout(inputs, self.dropout)
        return F.dropout(inputs, self.dropout)  # the same inputs on all ranks, and the same random state


class GatedAdapter(ColumnParallelAdapter):
    """The adapter of `linear_fc1`, whose outputs are two matrices, gate and up, each cut, as in a checkpoint."""

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        name = f"{prefix}lora_B"
        state[name] = apply_swiglu_sharded_factory(
            state[name], sharded_offsets, metadata.get("singleton_local_shards", False), tp_group=self.group
        )
        return state


class RowParallelAdapter(Adapter):
    """Adapts a linear cut by inputs; its outputs are whole, or cut by tokens under sequence parallelism."""

    cut = ("lora_A", 1)

    def _exchange(self, low: Tensor) -> Tensor:
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(low, group=self.group)
        return reduce_from_tensor_model_parallel_region(low, group=self.group)

    def _drop(self, inputs: Tensor) -> Tensor:
        with get_cuda_rng_tracker().fork():  # each rank has inputs of its own
            return F.dropout(inputs, self.dropout)


class _OfExpert(Adapter):
    """Adapts an expert's linear: inputs are gathered before it and outputs summed after it by the layer itself.

    So a matrix that is whole on every rank gets its gradient in parts.
    """

    shares_tokens = False

    def _matrices(self) -> tuple[Tensor, Tensor]:
        if self.group.size() == 1:
            return self.lora_A, self.lora_B
        if self.cut[0] == "lora_A":
            return self.lora_A, copy_to_tensor_model_parallel_region(self.lora_B, group=self.group)
        return copy_to_tensor_model_parallel_region(self.lora_A, group=self.group), self.lora_B

    def _exchange(self, low: Tensor) -> Tensor:
        return low

    def _drop(self, inputs: Tensor) -> Tensor:
        with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):  # each rank has tokens of its own
            return F.dropout(inputs, self.dropout)


class GatedExpertAdapter(_OfExpert, GatedAdapter):
    """Adapts `linear_fc1` of an expert."""


class RowParallelExpertAdapter(_OfExpert, RowParallelAdapter):
    """Adapts `linear_fc2` of an expert."""


# Of each linear: the adapter that fits it, and the one that fits an expert's.
KINDS: dict[str, tuple[type[Adapter], type[Adapter] | None]] = {
    "linear_qkv": (ColumnParallelAdapter, None),
    "linear_proj": (RowParallelAdapter, None),
    "linear_fc1": (GatedAdapter, GatedExpertAdapter),
    "linear_fc2": (RowParallelAdapter, RowParallelExpertAdapter),
}


@dataclass(frozen=True)
class _Place:
    """A module that holds linears, and its name in a checkpoint."""

    parent: torch.nn.Module
    name: str
    is_expert: bool = False


def _places(layer: Any, target: str, groups: ProcessGroupCollection) -> list[_Place]:
    """Where a layer has linears of this name: once, or in each of this rank's experts and in the shared one."""
    prefix = f"decoder.layers.{layer.layer_number - 1}"
    if target in ("linear_qkv", "linear_proj"):
        return [_Place(layer.self_attention, f"{prefix}.self_attention")]
    experts = getattr(layer.mlp, "experts", None)
    if experts is None:
        return [_Place(layer.mlp, f"{prefix}.mlp")]
    local: list[torch.nn.Module] = list(experts.local_experts)
    first = groups.ep.rank() * len(local)
    places = [_Place(expert, f"{prefix}.mlp.experts.experts.{first + at}", True) for at, expert in enumerate(local)]
    shared = layer.mlp.shared_experts
    return places if shared is None else [*places, _Place(shared, f"{prefix}.mlp.shared_experts")]


def add_adapters(
    model: GPTModel, lora: LoraConfig, architecture: Architecture, groups: ProcessGroupCollection, *, seed: int
) -> list[Adapter]:
    """Freezes a model, or the part of it that this rank holds, and adds adapters that do not change it yet (B is 0)."""
    model.requires_grad_(False)
    shapes = adapter_tensors(RULES[architecture.family], architecture, frozenset(lora.targets), lora.rank)
    adapters = []
    for layer in model.decoder.layers:
        for target in lora.targets:
            for place in _places(layer, target, groups):
                linear = getattr(place.parent, target)
                usual, of_expert = KINDS[target]
                kind, group = (of_expert, groups.expt_tp) if place.is_expert and of_expert else (usual, groups.tp)
                adapter = kind(linear.weight, lora, model.config, group)
                name = f"{place.name}.{target}_adapter.lora_A"
                _initialize(adapter, shapes[name], seed=_derived(seed, name))
                place.parent.add_module(f"{target}_adapter", adapter)
                if hasattr(linear, "return_layernorm_output"):  # Transformer Engine's norm and linear in one
                    linear.return_layernorm_output = True
                linear.register_forward_hook(_Added(adapter))
                adapters.append(adapter)
    if model.pre_process and model.config.recompute_granularity is not None:
        # A recomputed block is not asked for its parameters' gradients unless one of its inputs has one.
        model.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return adapters


class _Added:
    """Forward hook of a linear: adds its adapter to its output."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, linear: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Any, Tensor | None]) -> Any:
        (multiplied,), (result, bias) = inputs, output
        if isinstance(result, tuple):
            result, multiplied = result
        return (result + self.adapter(multiplied) if self.adapter.is_active else result), bias


def _initialize(adapter: Adapter, shape: tuple[int, int], *, seed: int) -> None:
    """A as PEFT and the paper's authors begin it (Kaiming, uniform within 1 / sqrt(inputs)), the same at any layout.

    `shape`: the whole A of the model itself. Columns beyond it belong to heads that `parallel.pad_heads` added: zero,
    so that these stay inert.
    """
    rank, inputs = shape
    bound = 1 / math.sqrt(inputs)
    whole = torch.empty(rank, inputs).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    name, dimension = adapter.cut
    if name == "lora_A":
        local = adapter.lora_A.shape[dimension]
        whole = F.pad(whole, (0, local * adapter.group.size() - inputs))
        whole = whole.narrow(dimension, local * adapter.group.rank(), local)
    with torch.no_grad():
        adapter.lora_A.copy_(whole)


def _derived(*parts: object) -> int:
    """A seed that is a function of these parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def is_adapter(name: str) -> bool:
    """Tells an adapter's parameter by its name, or by its key in a checkpoint."""
    return ADAPTER.fullmatch(name) is not None


@contextmanager
def adapters_off(adapters: Sequence[Adapter]) -> Iterator[None]:
    """Within it the model is its frozen base."""
    for adapter in adapters:
        adapter.is_active = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_active = True


def seed_dropout(adapters: Sequence[Adapter], groups: ProcessGroupCollection, *, seed: int, step: int) -> None:
    """Makes the dropout of a step a function of (seed, step) at a layout, whatever was drawn before."""
    if any(adapter.dropout for adapter in adapters):
        model_parallel_cuda_manual_seed(_derived(seed, step, groups.dp_cp.rank(), groups.pp.rank()))
