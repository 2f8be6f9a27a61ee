"""LoRA runs inside a rank: what is trained, its gradient at a layout, and the ranks' cuts put together."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from tests.distributed import leave_model_parallel
from tests.megatron_dpop.training.gathered import Arrays, gather_reduced, in_whole_model


@dataclass(frozen=True)
class Share:
    """One rank's part of a LoRA run, after its reference was computed and its policy loaded."""

    tensor_rank: int
    loss: float
    adapters: Arrays  # values, by name with the layer's place in the whole model
    gradients: Arrays  # fp32, reduced over replicas, likewise
    with_gradient: set[str]  # names of the parameters that DDP has a buffer for
    optimized: int  # elements that the optimizer holds, on this rank
    held: int  # elements of this rank's adapters


def shares_here(trees: list[dict]) -> list[Share]:
    return [_share(tree) for tree in trees]


def _share(tree: dict) -> Share:
    """Of the step that the run's last checkpoint leads to (or step 0)."""
    run, first_step = open_run(tree)
    from megatron.core import parallel_state

    from megatron_dpop.engine.forward import run_rows
    from megatron_dpop.training.metrics import StepMetrics
    from megatron_dpop.training.reference_cache import step_data

    engine = run.engine
    data, _ = step_data(run)
    engine.zero_gradients()
    metrics = StepMetrics(engine, run.inputs.loss, data.source.dataset)
    examples = len(data.source.examples_of_step(first_step))
    collected = run_rows(engine, data.rows(first_step), metrics.row_loss, forward_only=False, examples=examples)
    for chunk in engine.chunks:
        gather_reduced(chunk)
    parameters = {
        in_whole_model(name, module): parameter
        for module in engine.modules
        for name, parameter in module.named_parameters()
    }
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    buffered = {id(parameter) for chunk in engine.chunks for buffer in chunk.buffers for parameter in buffer.params}
    optimizers = getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    share = Share(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        loss=metrics.reduce(collected)["loss"],
        adapters={name: parameter.detach().numpy().copy() for name, parameter in trained.items()},
        gradients={name: parameter.main_grad.numpy().copy() for name, parameter in trained.items()},
        with_gradient={name for name, parameter in parameters.items() if id(parameter) in buffered},
        optimized=sum(parameter.numel() for group in groups for parameter in group["params"]),
        held=sum(parameter.numel() for parameter in trained.values()),
    )
    leave_model_parallel()
    return share


def open_run(tree: dict) -> tuple[Any, int]:
    """A run with its policy loaded, as `train` would go on with it, and the steps that it has taken."""
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)

    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.resuming import begin, load_policy
    from megatron_dpop.training.run import build_run

    run = build_run(config, read_inputs(config, progress=False), device)
    begin(run)
    return run, load_policy(run)


def save_start(tree: dict) -> None:
    """A checkpoint of the adapters as they begin."""
    run, first_step = open_run(tree)
    from megatron.core import dist_checkpointing

    from megatron_dpop.models.lora import is_adapter

    assert first_step == 0
    target = run.folder.checkpoints / "iter_0000000"
    target.mkdir(exist_ok=True)
    [module] = run.engine.modules
    state = {name: value for name, value in module.sharded_state_dict().items() if is_adapter(name)}
    dist_checkpointing.save({"model": state}, str(target))
    (run.folder.checkpoints / "latest_checkpointed_iteration.txt").write_text("0")
    leave_model_parallel()


def references_here(trees: list[dict]) -> list[list[list[float]]]:
    """Of each run, the reference log-probabilities computed anew after its policy was loaded."""
    return [_references(tree) for tree in trees]


def _references(tree: dict) -> list[list[float]]:
    run, _ = open_run(tree)

    from megatron_dpop.training.reference import compute_reference

    logps = compute_reference(run.engine, run.train, 9, lambda _: None)
    leave_model_parallel()
    return [list(row) for row in logps.tolist()]


def join(shares: Sequence[Share], field: str) -> Arrays:
    """Whole tensors from every rank's cuts; what ranks hold several times must agree to the bit."""
    whole: Arrays = {}
    for name in sorted({name for share in shares for name in getattr(share, field)}):
        cuts: dict[int, np.ndarray] = {}
        for share in shares:
            if name in getattr(share, field):
                cut = cuts.setdefault(share.tensor_rank, getattr(share, field)[name])
                np.testing.assert_array_equal(getattr(share, field)[name], cut, err_msg=name)
        whole[name] = _join(name, [cuts[rank] for rank in sorted(cuts)])
    return whole


def _join(name: str, cuts: list[np.ndarray]) -> np.ndarray:
    if name.endswith("linear_fc1_adapter.lora_B"):
        gates, ups = zip(*(np.split(cut, 2) for cut in cuts), strict=True)
        return np.concatenate((*gates, *ups))
    if name.endswith("linear_qkv_adapter.lora_B"):
        return np.concatenate(cuts)
    if re.search(r"linear_(proj|fc2)_adapter\.lora_A$", name):
        return np.concatenate(cuts, axis=1)
    for cut in cuts[1:]:
        np.testing.assert_array_equal(cut, cuts[0], err_msg=name)
    return cuts[0]


class _Added(torch.nn.Module):
    """W + scale * B A of each matrix that W is stacked of."""

    def __init__(self, matrices: list[tuple[torch.nn.Parameter, torch.nn.Parameter]], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a, self.b = (torch.nn.ParameterList(part) for part in zip(*matrices, strict=True))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        products = [b @ a for a, b in zip(self.a, self.b, strict=True)]
        return weight + self.scale * torch.cat(products).view_as(weight)


def with_adapted_experts(model: torch.nn.Module, adapter: str) -> torch.nn.Module:
    """A mixture of transformers' with a PEFT folder to train, without PEFT: experts are stacked, gate and up in one."""
    tensors = load_file(Path(adapter, "adapter_model.safetensors"))
    config = json.loads(Path(adapter, "adapter_config.json").read_text())
    model.requires_grad_(False)
    inputs: dict[str, torch.nn.Parameter] = {}  # A, by its linear of Megatron's

    def factors(module: str, linear: str) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        shared = inputs.setdefault(linear, torch.nn.Parameter(a))
        assert torch.equal(shared, a)
        return shared, torch.nn.Parameter(b)

    def adapt(module: torch.nn.Module, weight: str, names: list[tuple[str, str]]) -> None:
        if any(f"base_model.model.{name}.lora_A.weight" in tensors for name, _ in names):
            added = _Added([factors(*name) for name in names], config["lora_alpha"] / config["r"])
            parametrize.register_parametrization(module, weight, added)

    for at, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{at}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = f"{prefix}.out" if name == "o_proj" else f"{prefix}.in"
            adapt(getattr(layer.self_attn, name), "weight", [(f"{prefix}.self_attn.{name}", linear)])
        gated = [("mlp", layer.mlp), ("mlp.shared_expert", getattr(layer.mlp, "shared_expert", None))]
        for name, module in gated:
            for part in ("gate_proj", "up_proj", "down_proj") if hasattr(module, "gate_proj") else ():
                linear = f"{prefix}.{name}.{part.replace('up', 'gate')}"
                adapt(getattr(module, part), "weight", [(f"{prefix}.{name}.{part}", linear)])
        if hasattr(layer.mlp, "experts"):
            mixtral = model.config.model_type == "mixtral"
            where = f"{prefix}.{'block_sparse_moe' if mixtral else 'mlp'}.experts"
            gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
            every = range(len(layer.mlp.experts.down_proj))
            both = [(f"{where}.{expert}.{part}", f"{where}.{expert}.in") for expert in every for part in (gate, up)]
            adapt(layer.mlp.experts, "gate_up_proj", both)
            adapt(
                layer.mlp.experts,
                "down_proj",
                [(f"{where}.{expert}.{down}", f"{where}.{expert}.out") for expert in every],
            )
    return model


def with_shared_inputs(model: torch.nn.Module, adapter: str) -> torch.nn.Module:
    """`model` with a PEFT folder to train, its q, k and v (and gate and up) having one A, as a fused linear has."""
    if hasattr(model.config, "num_experts_per_tok"):
        return with_adapted_experts(model, adapter)
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    for layer in wrapped.base_model.model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if not hasattr(attention, "q_proj"):  # Phi-3 has one module for each fused linear
            continue
        for first, *others in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
            for other in others:
                if hasattr(other, "lora_A"):
                    torch.testing.assert_close(other.lora_A["default"].weight, first.lora_A["default"].weight)
                    other.lora_A["default"].weight = first.lora_A["default"].weight
    return wrapped
