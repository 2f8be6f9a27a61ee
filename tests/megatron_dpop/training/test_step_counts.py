"""What one training step does, in counts that no machine changes: a slower step shows here before any clock.

Where a change lowers a count, lower it here too. Where it raises one, it must be worth it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs

LAYERS = 4
PAIRS = 12
# What stands in for Transformer Engine's norm on the CPU makes a tensor of its own.
WAITS = {"tolist": 1, "item": 1, "__float__": 1, "tensor(device=)": 1}
COLLECTIVES_OF_TENSOR = {
    # Forward after the two row-parallel products of a layer, backward after its two column-parallel ones; once for
    # the embedding and once for the scored hidden states.
    "_reduce_scatter_base_": 4 * LAYERS + 2,
    # Before the other products of a layer in either direction, and again for its two weights' gradients.
    "_allgather_base_": 6 * LAYERS + 2,
    "allgather_": 1,  # of the log-probabilities' statistics
    "allreduce_": 3,  # as on one rank, and the norms' gradients
}
Expected = dict[str, int]


def _collectives_of_experts(layers: int) -> Expected:
    """Of two replicas that share the experts of `layers` layers, each a mixture."""
    return {
        # Of a layer: tokens to their experts, their shares of these, what comes back; the same backward.
        "alltoall_base_": 6 * layers,
        "_allgather_base_": layers,  # of how many tokens each expert is sent
        "allreduce_": 2,  # as on one rank
        "reduce_scatter_tensor_coalesced_": 1,  # of what replicas hold, which experts are not
        # Weights, once for the experts' optimizer and once for the other: Megatron-Core does so where it does not
        # overlap.
        "allgather_into_tensor_coalesced_": 2,
    }


def _waits_of_experts(layers: int) -> Expected:
    """Megatron-Core's dispatcher asks how many tokens go where; sequential experts, not used on GPUs, ask once more."""
    return {**WAITS, "tolist": 1 + 13 * layers, "to(device)": layers}


# Attention's two products of a layer are sharded as in a dense model, the feed-forward's are the experts'.
_SHARDED = {
    "_reduce_scatter_base_": 2 * LAYERS + 2,
    "_allgather_base_": 4 * LAYERS + 2,
    "allgather_": 1,
    "allreduce_": 3,
}
_STATES = {"item": 3}  # Megatron-Core looks at random states, which lie in the host's memory, once for each of two uses
EXPERT_LAYOUTS: dict[str, tuple[int, dict[str, int], Expected, Expected]] = {
    "expert 2": (2, {"expert": 2}, _collectives_of_experts(LAYERS), _waits_of_experts(LAYERS)),
    "tensor 2, expert 2": (
        2,
        {"tensor": 2, "expert": 2},
        # No replicas, so nothing to reduce or gather.
        {"alltoall_base_": 6 * LAYERS, **_SHARDED},
        {**_waits_of_experts(LAYERS), **_STATES},
    ),
    "tensor 2, expert 2 x 2": (
        4,
        {"tensor": 2, "expert": 2, "expert_tensor": 2},
        # Each expert's tokens and their shares come together from its two ranks, and its results are summed over these.
        {**_collectives_of_experts(LAYERS), **_SHARDED, "allgather_": 1 + 3 * LAYERS, "reduce_scatter_": 3 * LAYERS},
        {**_waits_of_experts(LAYERS), **_STATES, "tolist": 1 + 15 * LAYERS},
    ),
    "pipeline 2, expert 2": (
        4,
        {"pipeline": 2, "expert": 2},
        {**_collectives_of_experts(LAYERS // 2), "send": 1, "recv_": 1},
        _waits_of_experts(LAYERS // 2),
    ),
}


@dataclass(frozen=True)
class Counts:
    """Of one training step on one rank, after a first one that warmed up."""

    flops: int  # of matrix products, as torch counts them; it does not count attention's on CPUs
    useful_flops: float  # the same by `megatron_dpop.plan.flops`, attention left out
    collectives: dict[str, int]
    waits: dict[str, int]  # of the host for the device
    allocations: int
    allocated_bytes: int


def count_steps(trees: list[dict]) -> list[Counts]:
    return [_count(tree) for tree in trees]


def _count(tree: dict) -> Counts:
    from megatron_dpop.config.load import config_from_dict
    from megatron_dpop.runtime import processes

    config = config_from_dict(tree, origin="test")
    device = processes.initialize(config.parallel, seed=0)
    from torch.utils.flop_counter import FlopCounterMode

    from megatron_dpop.plan.flops import training_flops
    from megatron_dpop.training.inputs import read_inputs
    from megatron_dpop.training.metrics import StepMetrics
    from megatron_dpop.training.reference_cache import step_data
    from megatron_dpop.training.reruns import Reruns
    from megatron_dpop.training.resuming import begin, load_policy
    from megatron_dpop.training.run import build_run
    from megatron_dpop.training.step import train_step
    from tests.allocations import AllocationCounter
    from tests.collectives import CollectiveCounter
    from tests.host_waits import HostWaitCounter

    run = build_run(config, read_inputs(config, progress=False), device)
    begin(run)
    data, _ = step_data(run)
    load_policy(run)
    metrics = StepMetrics(run.engine, run.inputs.loss, data.source.dataset)
    take_step = partial(train_step, run.engine, data, metrics, Reruns())
    examples = data.source.examples_of_step(1)
    useful = training_flops(
        run.engine.architecture,
        None,
        tokens=float(data.source.shapes.row_tokens[examples].sum()),
        scores=float(data.source.shapes.scores[examples].sum()),
        attended=0.0,
    )
    take_step(0)
    with CollectiveCounter() as collectives, HostWaitCounter() as waits:
        take_step(1)
    with AllocationCounter() as allocations:
        take_step(1)
    with FlopCounterMode(display=False) as flops:
        take_step(1)
    leave_model_parallel()
    products = sum(count for operation, count in flops.get_flop_counts()["Global"].items() if "mm" in str(operation))
    return Counts(
        flops=products,
        useful_flops=useful,
        collectives=dict(collectives.calls),
        waits=dict(waits.counts),
        allocations=allocations.made,
        allocated_bytes=allocations.made_bytes,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counts")
    write_model(folder / "model", dtype="bfloat16", num_hidden_layers=LAYERS)
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return save_chat_models(["qwen3-moe"], folder, torch.bfloat16)


def _tree(world: Path, run: str, *, model: str = "model", **sections: object) -> dict:
    return write_config(
        world,
        world / model,
        precision={"params": "bf16"},
        train={"steps": 3, "global_batch_pairs": PAIRS},
        run={"dir": str(world / run)},
        **{"data": {"row_tokens": 512}, **sections},
    )


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[str, Counts]:
    """On one rank, with prefixes shared and not."""
    trees = {
        "shared": _tree(world, "shared"),
        "unshared": _tree(world, "unshared", data={"row_tokens": 512, "share_prefix": False}),
    }
    return dict(zip(trees, run_ranks(count_steps, 1, list(trees.values()))[0], strict=True))


@pytest.fixture(scope="module")
def tensor(world: Path) -> Counts:
    return run_ranks(count_steps, 2, [_tree(world, "tensor", parallel={"tensor": 2})])[0][0]


def test_products_are_the_useful_ones(alone: dict[str, Counts]) -> None:
    """Beyond the useful ones: logits computed again in the backward pass, and padding. `addmm_` is not counted."""
    for counts in alone.values():
        assert 1 < counts.flops / counts.useful_flops < 1.06


def test_sharing_saves_the_products_that_the_formula_says(alone: dict[str, Counts]) -> None:
    shared, unshared = alone["shared"], alone["unshared"]
    saved = 1 - shared.useful_flops / unshared.useful_flops
    assert saved > 0.3
    assert 1 - shared.flops / unshared.flops == pytest.approx(saved, abs=0.01)


def test_collectives_of_one_rank(alone: dict[str, Counts]) -> None:
    """Metrics and the gradient's norm."""
    assert alone["shared"].collectives == {"allreduce_": 2}


def test_collectives_of_tensor_parallelism(tensor: Counts) -> None:
    assert tensor.collectives == COLLECTIVES_OF_TENSOR


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_collectives_and_waits_of_experts(layout: str, world: Path) -> None:
    ranks, parallel, collectives, waits = EXPERT_LAYOUTS[layout]
    for counts in run_ranks(count_steps, ranks, [_tree(world, layout, model="qwen3-moe", parallel=parallel)]):
        assert counts[0].collectives == collectives
        assert counts[0].waits == waits


def test_the_host_waits_where_it_must(alone: dict[str, Counts]) -> None:
    """For the metrics, before any weight is touched; without fused kernels Megatron-Core waits twice to clip.

    Nothing else of a step is made on the device, or copied there, in a way that the host waits for.
    """
    assert alone["shared"].waits == WAITS


def test_a_step_allocates_no_more(alone: dict[str, Counts]) -> None:
    """Two hundredths of slack: the libraries' own temporaries may change with their versions."""
    assert alone["shared"].allocations < 1.02 * 2101
    assert alone["shared"].allocated_bytes < 1.02 * 17_148_790
